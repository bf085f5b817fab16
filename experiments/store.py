"""A Tango workspace in which files are data and locks alone say who measures.

Tango's LocalWorkspace keeps the state of its steps as pickles in SQLite, and its JSON format calls
whatever class a result names: reading either runs what others wrote. That state also outlives the
process that was killed in it. Here a step is complete where its record can be read, running where
its lock is held, and nothing else is remembered.
"""

import contextlib
import errno
import fcntl
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import ParseResult

from tango.common.exceptions import StepStateError
from tango.step import Step
from tango.step_cache import StepCache
from tango.step_caches.local_step_cache import LocalStepCache
from tango.step_info import StepInfo, StepState
from tango.workspace import Run, Workspace

from academic_pretraining.errors import AcademicPretrainingError, MeasurementError
from experiments.workspace import DATA, METADATA, is_there, read_record

# What the system answers where somebody else holds a lock, and where it can give none.
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

T = TypeVar("T")


class RecordCache(LocalStepCache):
    """Tango's folders, `cache/<step id>/`; only a record that can be read counts as a result."""

    def __contains__(self, step: object) -> bool:
        """Whether there is a whole, readable record of the step."""
        return isinstance(step, Step | StepInfo) and self._read(step) is not None

    def __getitem__(self, step: Step | StepInfo) -> Any:
        """Read a record as plain JSON.

        Raises:
            KeyError: there is none that can be read.
        """
        record = self._read(step)
        if record is None:
            raise KeyError(step.unique_id)
        return record

    def __setitem__(self, step: Step, value: Any) -> None:
        """Store a record; what stood there and could not be read is put aside, not lost."""
        folder = self.step_dir(step)
        # The data first: metadata without data is no result, but data without them is overwritten.
        if (folder / METADATA).exists():
            if os.path.lexists(folder / DATA):
                (folder / DATA).rename(_free_name(folder))
            (folder / METADATA).unlink()
        super().__setitem__(step, value)
        # Tango would answer from memory, whatever becomes of the file.
        self._remove_from_cache(step.unique_id)

    def _read(self, step: Step | StepInfo) -> dict[str, Any] | None:
        folder = self.step_dir(step)
        try:
            if not is_there(folder / METADATA):
                return None
            record = read_record(folder / DATA)
        except (OSError, ValueError, AcademicPretrainingError):
            return None
        of_another = isinstance(step, Step) and record.get("key") != step.kwargs["key"]
        return None if of_another else record


def _open_lock(path: Path) -> int:
    """Open a file to lock, which may be another user's."""
    how = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # NFS gives an exclusive lock only to who may write.
        return os.open(path, os.O_RDWR | os.O_CREAT | how, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | how)


def _check_usable(folder: Path) -> None:
    """Refuse a step whose folder is another user's, before anything is measured for it."""
    if os.path.lexists(folder) and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise MeasurementError(
            f"{folder} cannot be read and written: have its owner open it, or name another "
            "workspace with TANGO_WORKSPACE_DIR"
        )


def _free_name(folder: Path) -> Path:
    names = (f"unreadable{f'-{n}' * (n > 1)}.json" for n in itertools.count(1))
    return next(folder / name for name in names if not os.path.lexists(folder / name))


class RecordWorkspace(Workspace):
    """Runs steps once, by any number of processes on one file system.

    Args:
        folder: made where it is missing.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.dir = folder
        self._cache = RecordCache(folder / "cache")
        self._locks: dict[str, int] = {}

    @property
    def url(self) -> str:
        """Where it stands; it is opened by its folder alone."""
        return f"local://{self.dir}"

    @classmethod
    def from_parsed_url(cls, parsed_url: ParseResult) -> Workspace:
        """Open by a URL."""
        return cls(Path(parsed_url.netloc + parsed_url.path))

    @property
    def step_cache(self) -> StepCache:
        """The records."""
        return self._cache

    def work_dir(self, step: Step) -> Path:
        """Name a folder and make none: a measurement has its own, and this one would stay."""
        return self.dir / "work" / step.unique_id

    def lock_path(self, step: Step) -> Path:
        """File whose lock is held by whoever runs the step."""
        return self.dir / "locks" / f"{step.unique_id}.lock"

    def notes_path(self, step: Step) -> Path:
        """File in which whoever runs the step keeps what is finished of it."""
        return self.work_dir(step).with_suffix(".jsonl")

    def step_starting(self, step: Step) -> None:
        """Take the step's lock, which the operating system takes back from a killed process.

        Raises:
            StepStateError: another process runs it, or has just finished it.
            AcademicPretrainingError: its file system has no locks.
            MeasurementError: the result would have no place.
            OSError: the workspace cannot be written.
        """
        path = self.lock_path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _open_lock(path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if step in self._cache:
                raise StepStateError(step, StepState.COMPLETED)
            _check_usable(self._cache.step_dir(step))
        except BaseException as error:
            os.close(lock)
            if isinstance(error, OSError):
                self._explain(step, error)
            raise
        self._locks[step.unique_id] = lock

    def _explain(self, step: Step, error: OSError) -> None:
        """Raise what a lock that was not given means; return where it has no special meaning."""
        if error.errno in _HELD:
            raise StepStateError(step, StepState.RUNNING) from None
        if error.errno in _NO_LOCKS:
            # Files in their place would outlive whoever made them, and be taken for him.
            raise AcademicPretrainingError(
                f"the workspace {self.dir} stands on a file system without locks "
                f"({os.strerror(error.errno)}), where two scripts could measure one setting at "
                "once: name a folder on another one with TANGO_WORKSPACE_DIR"
            ) from error

    def step_finished(self, step: Step, result: T) -> T:
        """Store the result.

        Raises:
            OSError: it cannot be written; the step counts as not run.
        """
        self._cache[step] = result
        with contextlib.suppress(OSError):
            self.notes_path(step).unlink(missing_ok=True)
        self._release(step)
        return result

    def step_failed(self, step: Step, e: BaseException) -> None:
        """Leave the step to whoever comes next."""
        self._release(step)

    def step_info(self, step_or_unique_id: Step | str) -> StepInfo:
        """Not kept: a record says what there is to say."""
        raise NotImplementedError

    def register_run(self, targets: Iterable[Step], name: str | None = None) -> Run:
        """Not kept: a grid is walked step by step."""
        raise NotImplementedError

    def registered_runs(self) -> dict[str, Run]:
        """There are none."""
        return {}

    def registered_run(self, name: str) -> Run:
        """There is none.

        Raises:
            KeyError: always.
        """
        raise KeyError(name)

    def _release(self, step: Step) -> None:
        lock = self._locks.pop(step.unique_id, None)
        if lock is not None:
            os.close(lock)
