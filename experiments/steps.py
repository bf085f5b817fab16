"""A measurement as a Tango step."""

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, cast

from tango.format import JsonFormat
from tango.step import Step
from tango.workspace import Workspace

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.notes import Notes
from academic_pretraining.benchmarking.probes import Probe
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.benchmarking.storage import check_takes_more
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import MeasurementError
from academic_pretraining.gpus import visible_devices
from academic_pretraining.records import to_record
from experiments.identity import cache_key, library_versions
from experiments.store import RecordWorkspace


class MeasureStep(Step[dict[str, Any]]):
    """Measures one configuration; the result is a record as JSON."""

    DETERMINISTIC = True
    CACHEABLE = True
    VERSION = "001"
    FORMAT = JsonFormat()

    context: "MeasureContext"

    def run(self, key: str) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Measure; `key` only identifies the step, the configuration comes in the context.

        Raises:
            MeasurementError: no result for this setting, also for what the system refused it.
            OSError: the workspace takes no more, so that no other setting could be measured.
        """
        try:
            return self._measure(key)
        except OSError as error:
            check_takes_more(cast(RecordWorkspace, self.workspace).dir)
            raise MeasurementError(
                f"{self.context.config.label}: not measured: {type(error).__name__}: {error}"
            ) from error

    def _measure(self, key: str) -> dict[str, Any]:
        context = self.context
        hardware = context.config.hardware
        devices = [] if hardware.gpu.is_cpu else visible_devices(os.environ)
        where = {
            "host": platform.node(),
            "devices": [device.uuid for device in devices],
            "effort": asdict(context.effort),
        }
        measurement = measure(
            context.config,
            context.effort,
            sessions=context.sessions,
            on_probe=context.on_probe,
            notes=Notes(cast(RecordWorkspace, self.workspace).notes_path(self), where),
        )
        context.measured = True
        record = to_record(
            context.config,
            measurement,
            versions=library_versions(context.config),
            measured_at=time.time(),
        )
        # As it will be recalled: lists for tuples.
        return json.loads(json.dumps(record | {"key": key, "limits": context.limits}))


class MeasureContext:
    """What a step needs to run; of it only the configuration and `limits` are its identity."""

    def __init__(
        self,
        config: TrainingConfig,
        effort: Effort,
        sessions: Sessions,
        on_probe: Callable[[Probe], None] = lambda probe: None,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.effort = effort
        self.sessions = sessions
        self.on_probe = on_probe
        self.limits = dict(limits or {})
        # Whether this process measured it; another one may have been quicker.
        self.measured = False


def measure_step(context: MeasureContext) -> MeasureStep:
    """Make the step of a configuration."""
    step = MeasureStep(key=cache_key(context.config, context.limits))
    # Tango would print a failure's traceback; the caller explains it in a line.
    step.logger.setLevel(logging.CRITICAL)
    step.context = context
    return step


def is_cached(step: MeasureStep, workspace: Workspace) -> bool:
    """Whether the workspace holds the step's result."""
    return step in workspace.step_cache


def run_step(step: MeasureStep, workspace: Workspace) -> dict[str, Any]:
    """Recall or run a step; a result that cannot be read any more is measured again.

    Raises:
        StepStateError: another process is running it.
        OSError: the result cannot be stored.
    """
    return step.result(workspace)
