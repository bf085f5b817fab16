"""A training's launch, seen to its end: one line of what went wrong, and nothing left running."""

import ast
import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

import psutil

from academic_pretraining.benchmarking.agents_tmpdir import agents_tmpdir
from academic_pretraining.benchmarking.build_locks import remove_dead_build_locks
from academic_pretraining.benchmarking.launcher_logs import (
    accept_plain_log_records_only,
    end_log_server_with_parent,
)
from academic_pretraining.errors import AcademicPretrainingError, TrainingError

_T = TypeVar("_T")

_PR_SET_CHILD_SUBREAPER = 36
# How soon a signal is heeded, at the latest.
_LISTENS_SECONDS = 0.2
# torchrunx's agents were told to end by then, and have nothing left to do.
_GRACE_SECONDS = 10.0
_END_SECONDS = 5.0


def tended(start: Callable[[dict[str, str]], _T], *, source: Path) -> _T:
    """Launch with torchrunx, end with all that was started, and give what came of it.

    SIGTERM, as from SLURM's scancel, is taken for Ctrl-C meanwhile.

    Args:
        start: launches, given environment variables for the workers.
        source: what trains, for the message.

    Raises:
        TrainingError: whatever a worker or torchrunx raised.
    """
    # Of the launcher's own; what workers print comes as records of loggers below it.
    logging.getLogger("torchrunx").addFilter(_is_warning)
    accept_plain_log_records_only()
    end_log_server_with_parent()
    launched: Future[_T] = Future()
    try:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            _handled(signal.default_int_handler, signal.SIGTERM),
            _nobody_left(launched),
        ):
            variables = agents_tmpdir(Path(folder))
            # Beside this thread: in torchrunx's waiting it would not hear of a signal for minutes.
            _beside(lambda: start(variables), launched)
            # A signal that comes to the other thread does not wake this one.
            while not wait([launched], timeout=_LISTENS_SECONDS).done:
                pass
            return launched.result()
    except AcademicPretrainingError:
        raise
    except Exception as error:
        # What workers printed stands above; of what they raised a line will do.
        reason = (_message(error).strip().splitlines() or ["no reason given"])[0]
        raise TrainingError(
            f"the training of {source} failed: {type(error).__name__}: {reason}; what workers "
            "said stands above"
        ) from error


def _message(error: Exception) -> str:
    """Take the message alone where torchelastic, for a worker that did not begin, gives a dict."""
    text = str(error)
    if text.startswith("{'message': "):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return str(ast.literal_eval(text)["message"])
    return text


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _beside(call: Callable[[], _T], future: Future[_T]) -> None:
    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()


@contextlib.contextmanager
def _handled(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def _nobody_left(launched: Future[_T]) -> Iterator[None]:
    """End the processes that were started meanwhile, also those whose parent is gone."""
    before = set(psutil.Process().children(recursive=True))
    began_at = time.time()
    grace = 0.0
    # What outlives its parent comes to be a child of this process, and not of the system's first:
    # ranks whose agent is gone, and an agent whose shell was killed with all of its group.
    _adopt_orphans(True)
    try:
        yield
        grace = _GRACE_SECONDS
    except Exception:
        grace = _GRACE_SECONDS
        raise
    finally:
        # No second Ctrl-C comes between: what is done meanwhile is over in seconds.
        with _handled(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
            _end_children(before, grace)
            remove_dead_build_locks(os.environ, since=began_at)
            # A thread that is not over when Python ends aborts it.
            wait([launched], timeout=_END_SECONDS)
            _adopt_orphans(False)


def _adopt_orphans(wish: bool) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wish), 0, 0, 0)


def _end_children(before: set[psutil.Process], grace: float) -> None:
    def left() -> list[psutil.Process]:
        return [p for p in psutil.Process().children(recursive=True) if p not in before]

    psutil.wait_procs(left(), timeout=grace)
    for end in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
        found = left()
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        psutil.wait_procs(found, timeout=_END_SECONDS)
