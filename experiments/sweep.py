"""Walking a grid: what is cached is recalled, the rest is measured, failures do not stop it."""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tango.common.exceptions import StepStateError

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.probes import Probe
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import AcademicPretrainingError, DeviceBusyError, MeasurementError
from academic_pretraining.occupancy import Company, nobody_else
from experiments.identity import limits_that_do
from experiments.steps import MeasureContext, MeasureStep, is_cached, measure_step, run_step
from experiments.store import RecordWorkspace

# Logs and a record; a session that lacks room for them would be measured for nothing.
_ROOM_BYTES = 32 * 2**20


class Reporter(Protocol):
    """Who is told how a sweep goes on."""

    def starts(self, index: int, total: int, left: int, config: TrainingConfig) -> None:
        """Tell that a setting is measured, the `index`th from 1; with it, `left` are to come."""
        ...

    def recalls(self, config: TrainingConfig, record: dict[str, Any]) -> None:
        """Tell that a setting has a result already."""
        ...

    def probes(self, probe: Probe) -> None:
        """Tell what the setting is doing."""
        ...

    def ends(self, config: TrainingConfig, record: dict[str, Any] | None, note: str) -> None:
        """Tell how the setting ended; no record for a failure."""
        ...


@dataclass(kw_only=True)
class SweepEnd:
    """What became of a sweep.

    Attributes:
        records: of all settings that have a result.
        measured: how many of them were measured now.
        failures: error of each setting that has none.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    measured: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def sweep(
    configs: list[TrainingConfig],
    workspace: Path,
    effort: Effort,
    reporter: Reporter,
    alone: Callable[[], AbstractContextManager[Company]] = nobody_else,
    limits: Mapping[str, Any] | None = None,
    *,
    allow_busy: bool = False,
    ahead: bool = False,
) -> SweepEnd:
    """Measure every configuration that has no result yet.

    Args:
        configs: valid ones, in order.
        workspace: folder of the Tango workspace.
        effort: how thoroughly.
        reporter: told about each setting.
        alone: as for `Sessions`. A GPU that is busy costs the setting its result, and the next one
            is tried.
        limits: what of the effort the user asked for, as in `cache_key`.
        allow_busy: whether `alone` lets others be there, as in `limits_that_do`.
        ahead: whether to launch a setting's processes while the one before is measured.

    Raises:
        AcademicPretrainingError: the workspace cannot be used; what it holds is kept.
        HardwareMismatchError: the machine is not what was declared.
    """
    # Tango reports its own housekeeping as errors; what fails here is raised to the caller.
    logging.getLogger("tango").setLevel(logging.CRITICAL)
    workspace = workspace.resolve()
    sessions = Sessions(workspace / "sessions", alone=alone, ahead=ahead)
    try:
        store = RecordWorkspace(workspace)
        steps = []
        for config in configs:
            *better, last = (
                measure_step(MeasureContext(config, effort, sessions, reporter.probes, some))
                for some in limits_that_do(limits, allow_busy=allow_busy)
            )
            steps.append(next((step for step in better if is_cached(step, store)), last))
        return _walk(steps, store, reporter, sessions)
    except OSError as error:
        raise AcademicPretrainingError(
            f"the workspace {workspace} cannot be used ({error}): free it, or name another folder "
            "with TANGO_WORKSPACE_DIR; what it holds is kept, and the same command goes on"
        ) from error
    finally:
        sessions.close()


def _walk(
    steps: list[MeasureStep],
    workspace: RecordWorkspace,
    reporter: Reporter,
    sessions: Sessions,
) -> SweepEnd:
    end = SweepEnd()
    elsewhere: list[MeasureStep] = []
    left = sum(not is_cached(step, workspace) for step in steps)
    if left:
        _check_folders(workspace.dir)
    for index, step in enumerate(steps, start=1):
        config = step.context.config
        cached = is_cached(step, workspace)
        if not cached:
            reporter.starts(index, len(steps), left, config)
            left -= 1
            sessions.more = left > 0
        try:
            if not cached:
                _check_room(workspace.dir)
            record = run_step(step, workspace)
        except (MeasurementError, DeviceBusyError) as error:
            end.failures[config.method.label] = str(error)
            reporter.ends(config, None, str(error))
            continue
        except StepStateError:
            note = "being measured by another process: left to it"
            end.failures[config.method.label] = note
            reporter.ends(config, None, note)
            elsewhere.append(step)
            continue
        end.records.append(record)
        end.measured += step.context.measured
        if cached:
            reporter.recalls(config, record)
        else:
            reporter.ends(config, record, "")
    for step in elsewhere:
        # By now the other process may have finished it.
        if is_cached(step, workspace):
            end.records.append(run_step(step, workspace))
            del end.failures[step.context.config.method.label]
    return end


def _check_folders(workspace: Path) -> None:
    """Refuse at once what would otherwise be refused setting by setting."""
    for name in ("sessions", "locks"):
        path = workspace / name
        if os.path.lexists(path) and not path.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _check_room(workspace: Path) -> None:
    free = shutil.disk_usage(workspace).free
    if free < _ROOM_BYTES:
        raise OSError(
            f"only {free / 2**20:.0f} MiB are free, and a measurement needs "
            f"{_ROOM_BYTES / 2**20:.0f}"
        )
