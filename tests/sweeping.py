"""Fixtures for sweeps without GPUs: settings, and a stand-in that measures them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from samples import MEASURED, TIMING

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.notes import Notes
from academic_pretraining.benchmarking.probes import Probe
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import MethodSpace
from academic_pretraining.models import MODELS
from academic_pretraining.records import Measurement


class Measurer:
    """Stands in for GPUs: gives a measurement, or raises what it was told to.

    Attributes:
        configs: what it was asked to measure, in order.
        errors: what to raise, by configuration.
        probe: what it says to be doing.
    """

    def __init__(self) -> None:
        self.configs: list[TrainingConfig] = []
        self.errors: dict[str, BaseException] = {}
        self.probe: Probe | None = None
        self.arguments: dict[str, Any] = {}

    def __call__(
        self,
        config: TrainingConfig,
        effort: Effort,
        *,
        sessions: Sessions,
        on_probe: Callable[[Probe], None],
        notes: Notes | None = None,
    ) -> Measurement:
        with sessions.alone():
            self.configs.append(config)
            self.arguments = {"effort": effort, "scratch": sessions.scratch}
            if self.probe:
                on_probe(self.probe)
            if error := self.errors.get(config.label):
                raise error
        seconds = float(len(self.configs))
        return dataclasses.replace(MEASURED, best=dataclasses.replace(TIMING, step_seconds=seconds))

    def taken(self) -> list[TrainingConfig]:
        """Give what was measured since the last call."""
        configs, self.configs = self.configs, []
        return configs


class Silent:
    """Is told how a sweep goes on and keeps it to itself."""

    def starts(self, index: int, total: int, left: int, config: TrainingConfig) -> None: ...
    def recalls(self, config: TrainingConfig, record: dict[str, Any]) -> None: ...
    def probes(self, probe: Probe) -> None: ...
    def ends(self, config: TrainingConfig, record: dict[str, Any] | None, note: str) -> None: ...


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture
def measurer(monkeypatch) -> Measurer:
    fake = Measurer()
    monkeypatch.setattr("experiments.steps.measure", fake)
    return fake


@pytest.fixture(scope="session")
def configs() -> list[TrainingConfig]:
    """Give the first four settings of a grid."""
    machine = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")
    recipe = MODELS["pythia-14m"]
    valid = [method for method, why in grid(machine, recipe, MethodSpace.ALL) if not why]
    return [TrainingConfig(hardware=machine, recipe=recipe, method=m) for m in valid[:4]]
