"""Reading a Tango workspace without Tango, which would load torch.

Tango keeps each result in `cache/<step id>/`: `data.json`, written first, and
`cache-metadata.json`, renamed into place when the result is whole.
"""

import contextlib
import gc
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from academic_pretraining.checks import check_record
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import AcademicPretrainingError, InvalidFileError
from academic_pretraining.records import RECORD_VERSION
from experiments.identity import cache_key, limits_that_do
from experiments.strict_json import loads

_STEP_PREFIX = "MeasureStep-"
DATA = "data.json"
METADATA = "cache-metadata.json"
_LARGEST_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A result that cannot be used, and why."""

    path: Path
    reason: str


def read_records(workspace: Path) -> tuple[list[dict[str, Any]], list[Unreadable]]:
    """Read all complete results of a workspace; works on any machine.

    Returns:
        the records, and what could not be read.

    Raises:
        InvalidFileError: the workspace is a file, or cannot be read.
    """
    try:
        there = next(path for path in (workspace, *workspace.parents) if os.path.lexists(path))
        if not there.is_dir():
            where = "" if there == workspace else "below "
            raise InvalidFileError(
                f"the workspace {workspace} is {where}a file: name a folder with "
                "TANGO_WORKSPACE_DIR"
            )
        folders = list(_step_folders(workspace))
    except OSError as error:
        raise InvalidFileError(
            f"the workspace {workspace} cannot be read ({error}): name another folder with "
            "TANGO_WORKSPACE_DIR"
        ) from error
    records: list[dict[str, Any]] = []
    unreadable: list[Unreadable] = []
    with _no_collection():
        for folder, whole in folders:
            if isinstance(whole, OSError):
                unreadable.append(Unreadable(path=folder / DATA, reason=f"{whole}"))
                continue
            if not whole:
                # Perhaps it is being written; else its process was killed, or somebody took it.
                reason = f"{METADATA} is missing beside it: it is measured again"
                unreadable.append(Unreadable(path=folder / DATA, reason=reason))
                continue
            try:
                records.append(read_record(folder / DATA))
            except (OSError, ValueError, AcademicPretrainingError) as error:
                unreadable.append(Unreadable(path=folder / DATA, reason=f"{error}"))
    return records, unreadable


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Do not look for garbage among thousands of records, which all stay: a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def incomplete(
    configs: list[TrainingConfig],
    workspace: Path,
    limits: Mapping[str, Any] | None = None,
    *,
    allow_busy: bool = False,
) -> list[TrainingConfig]:
    """List the configurations without a result.

    Args:
        configs: to look for.
        workspace: where.
        limits: as in `limits_that_do`.
        allow_busy: as in `limits_that_do`.
    """
    known = {record.get("key") for record in read_records(workspace)[0]}
    enough = limits_that_do(limits, allow_busy=allow_busy)
    return [c for c in configs if not any(cache_key(c, some) in known for some in enough)]


def _step_folders(workspace: Path) -> Iterator[tuple[Path, bool | OSError]]:
    """Yield the folders of results, and whether each was finished, or why nobody knows."""
    cache = workspace / "cache"
    if cache.is_dir():
        for folder in sorted(cache.iterdir()):
            if folder.name.startswith(_STEP_PREFIX):
                try:
                    whole = is_there(folder / METADATA)
                    there = whole or is_there(folder / DATA)
                except OSError as error:
                    # Another user's.
                    yield folder, error
                    continue
                if there:
                    yield folder, whole


def is_there(path: Path) -> bool:
    """Whether there is such a file.

    Raises:
        OSError: nobody may know, which `Path.exists` answers with no on some versions of Python.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_record(path: Path) -> dict[str, Any]:
    """Read one record and check that nothing is missing in it.

    Raises:
        OSError, ValueError, AcademicPretrainingError: it cannot be used.
    """
    found = path.stat()
    # Reading a pipe or a device would never end.
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > _LARGEST_BYTES:
        raise ValueError(f"it has {found.st_size:,} bytes, more than any record")
    record = loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or "version" not in record:
        raise ValueError("not a record of this toolkit")
    if record["version"] != RECORD_VERSION:
        raise ValueError(f"record version {record['version']}, but {RECORD_VERSION} is read here")
    if not isinstance(record.get("key"), str | None):
        raise ValueError("broken record: its key is no text")
    check_record(record)
    return record
