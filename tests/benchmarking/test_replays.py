"""What was measured on H100s, as a simulated device: the search takes the same way again."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from simulated import Device, search, story

from academic_pretraining.benchmarking.prediction import best_timing
from academic_pretraining.benchmarking.probes import Probe
from academic_pretraining.config import config_from_dict

RESULTS = Path(__file__).parents[2] / "artifacts" / "results" / "cache"
RECORDS = {
    path.parent.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/data.json"))
}
# Where that met a wall, there are too few peaks to tell what lay before it.
WITHOUT_A_WALL = [
    name
    for name, record in RECORDS.items()
    if record["measurement"]["out_of_memory_micro_batch_size"] is None
]


@dataclass(kw_only=True)
class Replayed(Device):
    """A device that takes the recorded steps, with peaks on lines through the recorded ones.

    Where a size was timed, its allocator holds as much more than the peak as it did.
    """

    record: dict[str, Any]
    steps: dict[tuple[int, bool], tuple[float, float]] = field(default_factory=dict)
    peaks: dict[bool, dict[int, int]] = field(default_factory=dict)
    held_share: dict[tuple[int, bool], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        measured = self.record["measurement"]
        self.memory = measured["device_bytes"]
        self.peaks = {False: dict(measured["memory_ramp"]), True: {}}
        config = config_from_dict(self.record["config"])
        for timing in measured["timings"]:
            size, compiled = timing["micro_batch_size"], timing["compiled"]
            self.steps[size, compiled] = timing["micro_step_seconds"], timing["overhead_seconds"]
            # The inputs that no short run held are the search's business.
            longest = max(accumulation for accumulation, _ in timing["samples"])
            more = timing["gradient_accumulation_steps"] - longest
            inputs = max(0, more) * size * config.recipe.example_bytes
            self.peaks[compiled].setdefault(size, timing["peak_bytes"] - inputs)
            self.held_share[size, compiled] = timing["reserved_bytes"] / timing["peak_bytes"]

    def peak_at(self, size: int, *, compiled: bool) -> float:
        peaks = self.peaks[compiled]
        if size in peaks:
            return peaks[size]
        [*_, (small, low), (large, high)] = sorted(
            sorted(peaks.items(), key=lambda known: abs(known[0] - size))[:2]
        )
        return low + (high - low) / (large - small) * (size - small)

    def held(self, probe: Probe) -> float:
        return self.peak(probe) * self.held_share.get(probe.variant, 1.0)

    def micro_step_seconds(self, size: int, *, compiled: bool = False) -> float:
        seconds, overhead = self.steps.get((size, compiled), (float(size), 0.0))
        self.overhead_seconds = overhead
        return seconds


@pytest.mark.parametrize("name", WITHOUT_A_WALL)
def test_what_was_chosen_is_chosen_again(name):
    record = RECORDS[name]
    config = config_from_dict(record["config"])
    measured = record["measurement"]
    device = Replayed(record=record)
    history = search(config, device)
    told = story(history).split()
    memory = list(itertools.takewhile(lambda probe: probe[0] == "m", told))
    ramp = [size for size, _ in measured["memory_ramp"]]
    rising = [size for i, size in enumerate(ramp) if size == max(ramp[: i + 1])]
    # A size between two others is no longer asked for.
    assert memory == [f"m{size}" for size in rising]
    # Five were measured when a third size was timed even after a second that gained little.
    assert {r.probe.variant for r in history[len(memory) :]} <= set(device.steps)
    best = best_timing(config, history)
    assert best is not None
    assert best.probe.micro_batch_size == measured["best"]["micro_batch_size"]
