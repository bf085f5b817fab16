"""Disks that take no more, how to tell and to say so; files of others that would have no end."""

import contextlib
import errno
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID_OF_FULL = ("No space left on device", "Disk quota exceeded")
_SAMPLE_BYTES = 64 * 2**10
_LARGEST_BYTES = 2**24


def check_takes_more(folder: Path) -> None:
    """Write a little, and nothing that stays.

    Raises:
        OSError: the folder is not there, may not be written, or its disk is full.
    """
    with tempfile.TemporaryFile(dir=folder) as stream:
        # Nothing that a file system could store as a few bytes.
        stream.write(os.urandom(_SAMPLE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder, or the user's share of it, is used up."""
    try:
        check_takes_more(folder)
    except OSError as error:
        return error.errno in _FULL
    return False


def says_full(error: BaseException) -> bool:
    """Whether this error is that of a full disk."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(text in str(error) for text in _SAID_OF_FULL)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody reads half of it.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_suffix(".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_finite(path: Path, kind: str) -> str:
    """Read a small file that others may have put there: no pipe or device, which has no end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, has more bytes than any of its kind, or is no UTF-8.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > _LARGEST_BYTES:
        raise ValueError(f"it has {found.st_size:,} bytes, more than any {kind}")
    return path.read_text(encoding="utf-8")


def found_in(folder: Path, pattern: str) -> list[Path]:
    """List files of a folder, which may be removed meanwhile; then there are none."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(folder.glob(pattern))
    return []


def leave_failure(path: Path, failure: dict[str, Any]) -> None:
    """Write a rank's failure whole; on a full disk, which still takes names, leave it empty."""
    try:
        write_whole(path, json.dumps(failure))
    except OSError as error:
        if not says_full(error):
            raise
        path.touch()


def read_failure(path: Path) -> dict[str, Any]:
    """Read what `leave_failure` left."""
    if text := path.read_text():
        return json.loads(text)
    rank = path.name.partition(".")[0]
    return {
        "outcome": "crashed",
        "cause": f"the disk is full: {rank} had no room to say what failed",
        "requested_bytes": None,
        "free_bytes": None,
        "transient": False,
        "log": str(path.with_name(f"{rank}.log")),
        "time": path.stat().st_mtime,
    }
