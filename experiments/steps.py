"""A measurement as a Tango step."""

import contextlib
import getpass
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tango import Step, Workspace
from tango.common.exceptions import StepStateError
from tango.common.file_lock import FileLock
from tango.format import JsonFormat
from tango.workspaces.local_workspace import LocalWorkspace

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.probes import Probe
from academic_pretraining.config import TrainingConfig
from academic_pretraining.results import to_record
from experiments.identity import cache_key, library_versions


class MeasureStep(Step[dict[str, Any]]):
    """Measures one configuration; the result is a record as JSON."""

    DETERMINISTIC = True
    CACHEABLE = True
    VERSION = "001"
    FORMAT = JsonFormat()

    context: "MeasureContext"

    def run(self, key: str) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Measure; `key` only identifies the step, the configuration comes in the context."""
        context = self.context
        measurement = measure(
            context.config, context.effort, scratch=context.scratch, on_probe=context.on_probe
        )
        record = to_record(
            context.config,
            measurement,
            versions=library_versions(context.config),
            measured_at=time.time(),
        )
        # As it will be recalled: lists for tuples.
        return json.loads(json.dumps(record | {"key": key}))


class MeasureContext:
    """What a step needs to run and what must not change its identity."""

    def __init__(
        self,
        config: TrainingConfig,
        effort: Effort,
        scratch: Path,
        on_probe: Callable[[Probe], None] = lambda probe: None,
    ) -> None:
        self.config = config
        self.effort = effort
        self.scratch = scratch
        self.on_probe = on_probe


def measure_step(context: MeasureContext) -> MeasureStep:
    """Make the step of a configuration."""
    step = MeasureStep(key=cache_key(context.config))
    # Tango would print a failure's traceback; the caller explains it in a line.
    step.logger.setLevel(logging.CRITICAL)
    step.context = context
    return step


def is_cached(step: MeasureStep, workspace: Workspace) -> bool:
    """Whether the workspace holds the step's result."""
    return step in workspace.step_cache


def run_step(step: MeasureStep, workspace: LocalWorkspace) -> dict[str, Any]:
    """Recall or run a step; a state left behind by a killed process is repaired first.

    A result that cannot be read any more is measured again.

    Raises:
        StepStateError: another process is running it.
    """
    with _surroundings_that_tango_can_describe(workspace.dir):
        if is_cached(step, workspace):
            try:
                return step.result(workspace)
            except (OSError, ValueError):
                workspace.remove_step(step.unique_id)
        try:
            return step.result(workspace)
        except StepStateError as running:
            # Killed between the result and its metadata, Tango takes a step for running for ever.
            lock = FileLock(str(workspace.step_dir(step) / "lock"))
            try:
                lock.acquire(timeout=0)
            except TimeoutError:
                raise running from None
            lock.release()
            workspace.remove_step(step.unique_id)
            return step.result(workspace)


@contextlib.contextmanager
def _surroundings_that_tango_can_describe(folder: Path) -> Iterator[None]:
    """Spare Tango 1.3 what it stumbles over when it notes where a step runs.

    It raises in a git repository without a commit or without a remote called origin, without a
    git program, and for a user id without a name; so it runs outside the repository and finds a
    name. Its use of pkg_resources is no news to the user either.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
    with warnings.catch_warnings(), contextlib.chdir(folder):
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        yield
