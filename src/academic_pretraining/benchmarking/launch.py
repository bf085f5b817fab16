"""Sessions: a process group of its own that runs probes, watched and ended from outside.

torchrunx has no limit on wall time, and a rank that fails leaves the others waiting in a
collective; so the launcher runs in a child session, its workers leave files, and this side
reads them, keeps the deadline and ends the whole group.

A session is launched before it is told what to measure: its ranks load their libraries, which
takes longer than many a probe, touch no device and wait for the request.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from academic_pretraining.benchmarking.build_locks import remove_dead_build_locks
from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.post_mortem import failed, first_failure, hung, is_live
from academic_pretraining.benchmarking.probes import Probe, ProbeResult, Purpose
from academic_pretraining.benchmarking.stacks import START_SECONDS
from academic_pretraining.benchmarking.storage import found_in, write_whole
from academic_pretraining.config import TrainingConfig, config_to_dict
from academic_pretraining.gpus import Hardware

# Not `-m`, so that torchrunx finds `work` by its module's name.
_CHILD = (
    "import sys; from academic_pretraining.benchmarking.session import main; main(*sys.argv[1:])"
)
_POLL_SECONDS = 0.1
# The driver takes a few seconds to let a killed process go.
_END_SECONDS = 20.0


@dataclass(kw_only=True, eq=False)
class Launched:
    """A session on its way: its ranks load their libraries, then wait for a request.

    Attributes:
        process: the launcher's, which leads the session's process group.
        hardware: how many ranks, and where.
        directory: private and without another session's files; all nodes must see it.
        began_at: when it was launched, in seconds since the epoch.
    """

    process: subprocess.Popen[bytes]
    hardware: Hardware
    directory: Path
    began_at: float
    _killed: bool = field(default=False, init=False)

    def end(self) -> None:
        """Kill every process of it, and wait until the ranks of this machine hold no device.

        A second call kills nothing any more.
        """
        if not self._killed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            # From here on the number of its group may be another one's.
            self._killed = True
        until = time.monotonic() + _END_SECONDS
        while self._ranks_live() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        if self.hardware.num_nodes == 1:
            remove_dead_build_locks(os.environ, since=self.began_at)

    def _ranks_live(self) -> bool:
        """Whether a rank of this machine still runs; elsewhere their numbers mean nothing here."""
        here = self.hardware.num_nodes == 1
        return here and any(map(is_live, found_in(self.directory, "rank*.pid")))

    def ready_at(self) -> float | None:
        """Say when its last rank came to wait, in seconds since the epoch; `None` before."""
        ready = []
        for path in found_in(self.directory, "rank*.ready"):
            with contextlib.suppress(FileNotFoundError):
                ready.append(path.stat().st_mtime)
        return max(ready) if len(ready) == self.hardware.world_size else None


def launch(hardware: Hardware, *, directory: Path) -> Launched:
    """Start a session's processes; they use no device before `run_session`."""
    began_at = time.time()
    (directory / "hardware.json").write_text(json.dumps(dataclasses.asdict(hardware)))
    with (directory / "launcher.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(directory), str(os.getpid())],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Launched(process=process, hardware=hardware, directory=directory, began_at=began_at)


@dataclass(kw_only=True)
class SessionEnd:
    """What became of a session.

    Attributes:
        finished: whether the search came to its end.
        results: the probes that were answered; a failed one is the last.
        environment: what rank 0 said about its device and its model.
        start_seconds: from launch to the first probe, waiting for others left out.
        start_wait_seconds: of these, how many were waited for here; the rest went by while
            another session measured.
    """

    finished: bool = False
    results: list[ProbeResult] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    start_seconds: float = 0.0
    start_wait_seconds: float = 0.0


def run_session(
    launched: Launched,
    config: TrainingConfig,
    effort: Effort,
    history: Sequence[ProbeResult],
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_probe: Callable[[Probe], None] = lambda probe: None,
    on_result: Callable[[ProbeResult], None] = lambda result: None,
) -> SessionEnd:
    """Probe until the search is over or a probe fails; never longer than the deadlines.

    Args:
        launched: what runs it; it is over afterwards.
        config: what to measure.
        effort: how thoroughly.
        history: answers from earlier sessions.
        on_ready: called when all ranks wait for the request, before they touch a device; may take
            its time.
        on_probe: called when a probe begins.
        on_result: called when a probe was answered.

    Raises:
        HardwareMismatchError: a worker found another GPU type than the declared one.
    """
    request = {
        "config": config_to_dict(config),
        "effort": dataclasses.asdict(effort),
        "history": [result.to_dict() for result in history],
    }
    try:
        return _watch(launched, request, on_ready, on_probe, on_result)
    finally:
        launched.end()


def _watch(
    launched: Launched,
    request: dict[str, Any],
    on_ready: Callable[[], None],
    on_probe: Callable[[Probe], None],
    on_result: Callable[[ProbeResult], None],
) -> SessionEnd:
    end = SessionEnd()
    directory, hardware = launched.directory, launched.hardware
    events = _events(directory / "events.jsonl")
    began = time.monotonic()
    deadline = began + START_SECONDS
    asked: float | None = None
    probe: Probe | None = None
    warm = False
    looked = began
    while True:
        # Both before the events, which may be newer: a failure's own probe has begun by then.
        exited = launched.process.poll() is not None
        failure = None
        with contextlib.suppress(FileNotFoundError):
            failure = first_failure(directory, hardware)
        if asked is None and (ready_at := launched.ready_at()) is not None:
            end.start_seconds = max(0.0, ready_at - launched.began_at)
            end.start_wait_seconds = time.monotonic() - began
            on_ready()
            write_whole(directory / "request.json", json.dumps(request))
            asked = time.monotonic()
            deadline = asked + START_SECONDS
        while event := next(events):
            match event["kind"]:
                case "environment":
                    end.environment = event
                case "start":
                    data = event["probe"]
                    if probe is None and not end.results and asked is not None:
                        # Noticed late, but after the last look: another node's clock may be wrong.
                        now = time.monotonic()
                        late = max(0.0, time.time() - event["time"])
                        late = min(late, now - max(looked, asked))
                        end.start_seconds += now - late - asked
                        end.start_wait_seconds += now - late - asked
                    probe = Probe(**{**data, "purpose": Purpose(data["purpose"])})
                    deadline = time.monotonic() + probe.deadline_seconds
                    warm = False
                    on_probe(probe)
                case "warm":
                    warm = True
                case "result":
                    end.results.append(ProbeResult.from_dict(event["result"]))
                    on_result(end.results[-1])
                    probe = None
                    deadline = time.monotonic() + START_SECONDS
                case "restart":
                    return end
                case "done":
                    end.finished = True
                    return end
        looked = time.monotonic()
        # Without a folder nobody will be heard of any more.
        if failure or exited or not directory.exists():
            end.results.append(failed(probe, directory, failure))
            return end
        if time.monotonic() > deadline:
            end.results.append(hung(probe, directory, warm=warm))
            return end
        time.sleep(_POLL_SECONDS)


def _events(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the events as they are written, and `None` when there is no new one."""
    while not path.exists():
        yield None
    with path.open() as stream:
        line = ""
        while True:
            line += stream.readline()
            if line.endswith("\n"):
                yield json.loads(line)
                line = ""
            else:
                yield None
