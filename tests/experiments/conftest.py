import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.probes import Probe
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import MethodSpace
from academic_pretraining.models import MODELS
from academic_pretraining.results import Measurement, Timing

TIMING = Timing(
    micro_batch_size=16,
    gradient_accumulation_steps=32,
    global_batch_size=1024,
    step_seconds=2.5,
    step_seconds_standard_error=0.01,
    step_spread=0.02,
    micro_step_seconds=0.07,
    overhead_seconds=0.26,
    samples=((4, 0.54), (8, 0.82)),
    skipped_steps=0,
    peak_bytes=3 * 2**30,
    reserved_bytes=4 * 2**30,
    compiled=False,
    compiled_graphs=1,
    mfu=0.4,
)
MEASURED = Measurement(
    outcome="measured",
    best=TIMING,
    timings=(TIMING,),
    memory_ramp=((1, 2**30), (2, 2**31)),
    compile="on",
    compile_error="",
    out_of_memory_micro_batch_size=None,
    out_of_memory_requested_bytes=None,
    out_of_memory_free_bytes=None,
    kernels="none",
    model_flops_per_example=10**12,
    device_name="NVIDIA H200",
    device_bytes=140 * 2**30,
    seconds={"launch": 3.0, "all": 90.0},
    sessions=1,
)


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
        scratch: Path,
        on_probe: Callable[[Probe], None],
    ) -> Measurement:
        self.configs.append(config)
        self.arguments = {"effort": effort, "scratch": scratch}
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
