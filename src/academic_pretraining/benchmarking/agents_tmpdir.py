"""A temporary folder of their own for torchrunx's agents, which leave theirs behind."""

import os
import tempfile
from pathlib import Path

_RANKS_TMPDIR = "ACADEMIC_PRETRAINING_RANKS_TMPDIR"


def agents_tmpdir(own: Path) -> dict[str, str]:
    """Keep what torchrunx's agents leave in a folder that goes; a node without it takes another."""
    own.mkdir(mode=0o700, exist_ok=True)
    return {"TMPDIR": str(own), _RANKS_TMPDIR: os.environ.get("TMPDIR", "")}


def restore_tmpdir() -> None:
    """Give a rank the usual temporary folder.

    Compilations are cached there, for the next session and for the training; it is on a local
    disk; and the path of a socket there is not too long for the system.
    """
    if (before := os.environ.pop(_RANKS_TMPDIR, None)) is None:
        return
    os.environ.pop("TMPDIR", None)
    if before and Path(before).is_dir():
        os.environ["TMPDIR"] = before
    tempfile.tempdir = None
