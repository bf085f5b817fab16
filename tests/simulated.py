"""A GPU that answers probes without running anything, and a search on it."""

import dataclasses
from dataclasses import dataclass

from hypothesis import strategies as st
from playing import timed_accumulations

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.prediction import best_timing
from academic_pretraining.benchmarking.probes import (
    Outcome,
    Probe,
    ProbeResult,
    Purpose,
    StepSample,
)
from academic_pretraining.benchmarking.search import next_probe
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import get_model

GIB = 2**30
# What is timed again has tests of its own.
ONCE = Effort(most_refinements=0)
NORMAL = dataclasses.replace(ONCE, profiles=False, saves=False)


@dataclass(kw_only=True)
class Device:
    """A simulated GPU, whose peaks are linear in the micro-batch.

    Attributes:
        memory: in bytes; larger peaks run out of it.
        static, per_example: bytes.
        compiled_share: of the bytes for each example, what compiled code takes.
        compiled_static: of the static bytes, likewise.
        compiled_held: of a compiled peak, what the allocator holds, which has to fit.
        flat: bytes that another phase of the step takes, whatever the size.
        overhead_seconds, launch_seconds, per_example_seconds: once a step, a micro-batch and an
            example.
        slower_from, slow: a size from which on each example takes so many times as long.
        noise: share by which every other step is too slow.
        compile_fails_at: sizes.
        compiled_time: of a micro-batch's time, what compiled code takes.
    """

    memory: float = 80 * GIB
    static: float = 4 * GIB
    per_example: float = GIB
    compiled_share: float = 0.8
    compiled_static: float = 1.0
    compiled_held: float = 1.0
    flat: float = 0.0
    overhead_seconds: float = 0.05
    per_example_seconds: float = 0.01
    launch_seconds: float = 0.02
    slower_from: int | None = None
    slow: float = 2.0
    noise: float = 0.0
    compile_fails_at: tuple[int, ...] = ()
    compiled_time: float = 1.0

    def peak(self, probe: Probe) -> float:
        return self.peak_at(probe.micro_batch_size, compiled=probe.compile)

    def held(self, probe: Probe) -> float:
        return self.peak(probe) * (self.compiled_held if probe.compile else 1.0)

    def peak_at(self, size: int, *, compiled: bool) -> float:
        share = self.compiled_share if compiled else 1.0
        static = self.compiled_static if compiled else 1.0
        return max(static * self.static + share * self.per_example * size, static * self.flat)

    def micro_step_seconds(self, size: int, *, compiled: bool = False) -> float:
        slow = self.slow if self.slower_from is not None and size >= self.slower_from else 1.0
        slow *= self.compiled_time if compiled else 1.0
        return self.launch_seconds + slow * self.per_example_seconds * size

    def run(self, probe: Probe) -> ProbeResult:
        size = probe.micro_batch_size
        if probe.compile and size in self.compile_fails_at:
            return ProbeResult(probe=probe, outcome=Outcome.COMPILE_FAILED, cause="no kernel")
        held = self.held(probe)
        if held > self.memory:
            return ProbeResult(probe=probe, outcome=Outcome.OUT_OF_MEMORY)
        return ProbeResult(
            probe=probe,
            outcome=Outcome.OK,
            samples=tuple(
                self._sample(n, probe, i) for i, n in enumerate(timed_accumulations(probe))
            ),
            peak_bytes=round(self.peak(probe)),
            reserved_bytes=round(held),
            device_bytes=round(self.memory),
        )

    def _sample(self, accumulation: int, probe: Probe, number: int) -> StepSample:
        micro_step = self.micro_step_seconds(probe.micro_batch_size, compiled=probe.compile)
        seconds = self.overhead_seconds + accumulation * micro_step
        seconds *= 1 + self.noise * (-1) ** number
        rest = {"data_seconds": 0.0, "optimizer_seconds": 0.0, "skipped": False}
        return StepSample(accumulation=accumulation, seconds=seconds, **rest)


DEVICES = st.builds(
    Device,
    memory=st.floats(8 * GIB, 141 * GIB),
    static=st.floats(0, 100 * GIB),
    per_example=st.floats(0.001 * GIB, 20 * GIB),
    compiled_share=st.floats(0.3, 3.0),
    compiled_held=st.just(1.0) | st.floats(1.0, 1.6),
    overhead_seconds=st.floats(1e-4, 1.0),
    per_example_seconds=st.floats(1e-5, 2.0),
    launch_seconds=st.floats(0, 0.1),
    slower_from=st.none() | st.integers(1, 512),
    compile_fails_at=st.sets(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256, 512])).map(tuple),
)


def search(config: TrainingConfig, device: Device, effort=NORMAL) -> list[ProbeResult]:
    """Run the search to its end; fail where it repeats itself or has none."""
    history: list[ProbeResult] = []
    while probe := next_probe(config, effort, history):
        asked = [(r.probe.purpose, r.probe.micro_batch_size, r.probe.compile) for r in history]
        assert (probe.purpose, probe.micro_batch_size, probe.compile) not in asked
        assert len(history) < 2 * len(config.plans()) + 8
        history.append(device.run(probe))
    return history


def story(history: list[ProbeResult]) -> str:
    """Tell a search in a line: `m1 m4! t1 c1` for memory at 1 and 4, which failed, and timings."""
    return " ".join(
        ("c" if r.probe.compile else r.probe.purpose[0])
        + str(r.probe.micro_batch_size)
        + "!" * (r.outcome is not Outcome.OK)
        for r in history
    )


def config_on(
    gpu_type: str = "a100", gpus: int = 2, sharding: Sharding = Sharding.NONE, **changes
) -> TrainingConfig:
    """Train pythia-160m with free-lunch."""
    return TrainingConfig(
        hardware=Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type=gpu_type),
        recipe=get_model("pythia-160m"),
        method=Method(free_lunch=True, sharding=sharding),
        **changes,
    )


def sizes(history: list[ProbeResult], purpose: Purpose, outcome: Outcome) -> list[int]:
    """List the sizes of a history's probes that ended in one way."""
    found = [r.probe for r in history if r.outcome is outcome]
    return [probe.micro_batch_size for probe in found if probe.purpose is purpose]


def timed(history: list[ProbeResult]) -> list[int]:
    """List the sizes that were timed."""
    return sizes(history, Purpose.TIMING, Outcome.OK)


def best_size(config: TrainingConfig, history: list[ProbeResult]) -> int | None:
    """Find the fastest size."""
    best = best_timing(config, history)
    return best.probe.micro_batch_size if best else None
