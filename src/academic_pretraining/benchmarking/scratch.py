"""Folders of sessions: private, and removed when they have served, also by the next process."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "session-"
_LOCK = ".lock"


@contextlib.contextmanager
def session_folder(scratch: Path) -> Iterator[Path]:
    """Make a folder that only this user can read; it goes in the end, unless `keep` was called.

    Raises:
        OSError: the folder cannot be made.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    # The lock comes before the folder and goes after it, so that none is without one.
    descriptor, lock = _new_lock(scratch)
    folder = lock.with_suffix("")
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        # Without a lock it was to be kept.
        if lock.exists():
            _remove(folder, lock)
        os.close(descriptor)


def keep(folder: Path) -> None:
    """Leave a session's folder where it is, for its logs; what else was in it goes."""
    for name in ("trainer", "tmp"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.with_suffix(_LOCK).unlink(missing_ok=True)


def any_begun(scratch: Path) -> bool:
    """Whether a process has a session here, or had one and was killed."""
    return any(scratch.glob(f"{_PREFIX}*{_LOCK}"))


def remove_abandoned(scratch: Path) -> int:
    """Remove the folders of processes that were killed.

    Returns:
        how many.
    """
    removed = 0
    for lock in scratch.glob(f"{_PREFIX}*{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock.with_suffix(""), lock)
            removed += 1
    return removed


def _new_lock(scratch: Path) -> tuple[int, Path]:
    while True:
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_LOCK, dir=scratch)
        # The operating system takes it back when this process dies, however it does.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            # A file system without locks.
            os.close(descriptor)
            Path(name).unlink()
            raise
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        # Another process took it for an abandoned one before it was locked.
        os.close(descriptor)


def _remove(folder: Path, lock: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        lock.unlink(missing_ok=True)
