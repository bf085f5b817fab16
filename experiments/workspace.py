"""Reading a Tango workspace without Tango, which would load torch.

Tango keeps each result in `cache/<step id>/`: `data.json`, written first, and
`cache-metadata.json`, renamed into place when the result is whole.
"""

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from academic_pretraining.benchmarking.storage import read_finite
from academic_pretraining.checks import check_record
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import AcademicPretrainingError, InvalidFileError
from academic_pretraining.records import RECORD_VERSION
from experiments.identity import cache_key, limits_that_do
from experiments.strict_json import loads

_STEP_PREFIX = "MeasureStep-"
DATA = "data.json"
METADATA = "cache-metadata.json"


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
        folders = _step_folders(workspace)
    except OSError as error:
        raise InvalidFileError(
            f"the workspace {workspace} cannot be read ({error}): name another folder with "
            "TANGO_WORKSPACE_DIR"
        ) from error
    records: list[dict[str, Any]] = []
    unreadable: list[Unreadable] = []
    with _no_collection():
        for folder in folders:
            try:
                if is_there(folder / METADATA):
                    records.append(read_record(folder / DATA))
                elif is_there(folder / DATA):
                    # Perhaps it is being written; else its process was killed, or somebody took it.
                    reason = f"{METADATA} is missing beside it: it is measured again"
                    unreadable.append(Unreadable(path=folder / DATA, reason=reason))
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
    any_versions: bool = False,
) -> list[TrainingConfig]:
    """List the configurations without a result.

    Args:
        configs: to look for.
        workspace: where.
        limits: as in `limits_that_do`.
        allow_busy: as in `limits_that_do`.
        any_versions: whether a result of other library versions counts.
    """
    known = {record.get("key") for record in read_records(workspace)[0]}
    enough = limits_that_do(limits, allow_busy=allow_busy)
    if any_versions:
        known = {_without_versions(key) for key in known}
    as_known = _without_versions if any_versions else str
    return [c for c in configs if not any(as_known(cache_key(c, e)) in known for e in enough)]


def _without_versions(key: str | None) -> str:
    """Keep of a key what is measured, and within which limits; nothing where it is none."""
    try:
        identity = json.loads(key or "")
        del identity["versions"]
        return json.dumps(identity, sort_keys=True)
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""


def _step_folders(workspace: Path) -> list[Path]:
    cache = workspace / "cache"
    folders = sorted(cache.iterdir()) if cache.is_dir() else []
    return [folder for folder in folders if folder.name.startswith(_STEP_PREFIX)]


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
    record = loads(read_finite(path, "record"))
    if not isinstance(record, dict) or "version" not in record:
        raise ValueError("not a record of this toolkit")
    if record["version"] != RECORD_VERSION:
        raise ValueError(f"record version {record['version']}, but {RECORD_VERSION} is read here")
    if not isinstance(record.get("key"), str | None):
        raise ValueError("broken record: its key is no text")
    check_record(record)
    return record
