"""Folders of sessions: private, and removed when they have served, also by the next process."""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "session-"
_LOCK = "lock"
_KEPT = "kept"


@contextlib.contextmanager
def session_folder(scratch: Path) -> Iterator[Path]:
    """Make a folder that only this user can read; it goes in the end, unless `keep` was called.

    Raises:
        OSError: the folder cannot be made.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=scratch))
    with (folder / _LOCK).open("w") as lock:
        # Given back by the operating system when this process dies, however it does.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield folder
        finally:
            if not (folder / _KEPT).exists():
                _remove(folder)


def keep(folder: Path) -> None:
    """Leave a session's folder where it is, for its logs; what was trained in it goes."""
    (folder / _KEPT).touch()
    shutil.rmtree(folder / "trainer", ignore_errors=True)


def remove_abandoned(scratch: Path) -> int:
    """Remove the folders of processes that were killed.

    Returns:
        how many.
    """
    removed = 0
    for path in scratch.glob(f"{_PREFIX}*/{_LOCK}"):
        if (path.parent / _KEPT).exists():
            continue
        with contextlib.suppress(OSError), path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path.parent)
            removed += 1
    return removed


def _remove(folder: Path) -> None:
    # The lock goes last: without it nobody could tell a rest from a session that begins.
    for path in folder.iterdir():
        if path.name == _LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
