"""Walking a grid: what is cached is recalled, the rest is measured, failures do not stop it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tango.common.exceptions import StepStateError
from tango.workspaces.local_workspace import LocalWorkspace

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.probes import Probe
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import AcademicPretrainingError, DeviceBusyError, MeasurementError
from experiments.steps import MeasureContext, is_cached, measure_step, run_step


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
    check: Callable[[], None] = lambda: None,
) -> SweepEnd:
    """Measure every configuration that has no result yet.

    Args:
        configs: valid ones, in order.
        workspace: folder of the Tango workspace.
        effort: how thoroughly.
        reporter: told about each setting.
        check: called before each setting that is measured; raises where the machine will not do.
            A GPU that is busy costs the setting its result, and the next one is tried.
    """
    workspace = workspace.resolve()
    local = _open(workspace)
    end = SweepEnd()
    steps = [
        measure_step(MeasureContext(config, effort, workspace / "sessions", reporter.probes))
        for config in configs
    ]
    left = sum(not is_cached(step, local) for step in steps)
    for index, (config, step) in enumerate(zip(configs, steps, strict=True), start=1):
        cached = is_cached(step, local)
        if not cached:
            reporter.starts(index, len(configs), left, config)
            left -= 1
        try:
            if not cached:
                check()
            record = run_step(step, local)
        except (MeasurementError, DeviceBusyError) as error:
            end.failures[config.method.label] = str(error)
            reporter.ends(config, None, str(error))
            continue
        except StepStateError:
            note = "being measured by another process: left to it"
            end.failures[config.method.label] = note
            reporter.ends(config, None, note)
            continue
        end.records.append(record)
        if cached:
            reporter.recalls(config, record)
        else:
            end.measured += 1
            reporter.ends(config, record, "")
    return end


def _open(workspace: Path) -> LocalWorkspace:
    # Tango reports its own housekeeping as errors; what fails here is raised to the caller.
    logging.getLogger("tango").setLevel(logging.CRITICAL)
    try:
        return LocalWorkspace(workspace)
    except OSError as error:
        raise AcademicPretrainingError(
            f"the workspace {workspace} cannot be used ({error}): name another folder with "
            "TANGO_WORKSPACE_DIR"
        ) from error
