"""How much time a measurement may take."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# Where steps from so long on would take more than the wished time, one less warms up and three are
# timed: what makes a run's first ones differ took 18 to 53 ms on H100s (medians of four groups;
# artifacts/README.md), at most 2% of one of the three.
_LONG_STEP_SECONDS = 3.0
_ABOUT = 1.25
USABLE_MEMORY = 0.94
"""Share of a device's memory that a predicted peak may fill: the rest is for what no peak holds."""
LEAST_TIMED_STEPS = 3
"""Steps with most micro-batches that are timed in a run of long ones, and in a lengthened one."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much time a measurement may take.

    Attributes:
        timing_seconds: wished length of one timing run, compilation left out. A run of several
            epochs ends with the one by which it has lasted so long. One with steps four to six
            times as long takes about three to four times as long.
        most_timings: micro-batch sizes to time at most; with compilation and without, each.
        relative_half_width: half the 95% interval of the real step, over its seconds, that is good
            enough.
        most_refinements: longer runs at the best micro-batch to come there, at most; 0 also leaves
            out those that confirm it.
        high_steps, epochs, warm_up_steps: shape of a timing run, as in `Probe`, where steps are
            short; `steps_of` has the others.
        usable_memory: share of the device's memory that a predicted peak may fill.
        micro_batch_sizes: sizes to consider; empty for all that divide the batch.
        profiles: whether to look at communication in the end, on several GPUs.
        saves: whether to write a checkpoint in the end, and time it.
        largest_checkpoint_bytes: above this none is written, for want of time.
        memory_deadline_seconds: limit of a memory probe, and of each of these two.
        timing_deadline_seconds: limit of a timing probe, compilation included; three times its
            expected steps come on top.
    """

    timing_seconds: float = 8.0
    most_timings: int = 4
    relative_half_width: float = 0.02
    most_refinements: int = 2
    high_steps: int = 7
    epochs: int = 1
    warm_up_steps: int = 3
    usable_memory: float = USABLE_MEMORY
    micro_batch_sizes: tuple[int, ...] = ()
    profiles: bool = True
    saves: bool = True
    largest_checkpoint_bytes: float = 40e9
    memory_deadline_seconds: float = 300.0
    timing_deadline_seconds: float = 1500.0

    def within(self, limits: Mapping[str, Any]) -> "Effort":
        """Keep to what the user asked for, by field; all sizes that were named may be timed."""
        named = len(limits.get("micro_batch_sizes", ()))
        effort = replace(self, **limits)
        return replace(effort, most_timings=max(effort.most_timings, named))

    def steps_of(self, step_seconds: float, at_most: int) -> tuple[int, int]:
        """Shape an epoch of a timing run: its steps but for a shorter last one, and the warm-up.

        Args:
            step_seconds: of one such step, as far as it is known; 0 if not.
            at_most: how many steps to run where they are short, or fit into the wished time.
        """
        fit = at_most * step_seconds <= _ABOUT * self.timing_seconds
        if step_seconds < _LONG_STEP_SECONDS or fit:
            return at_most, self.warm_up_steps
        warm_up_steps = min(self.warm_up_steps, max(1, self.warm_up_steps - 1))
        return min(at_most, warm_up_steps + LEAST_TIMED_STEPS), warm_up_steps


QUICK = Effort(
    timing_seconds=12.0,
    most_timings=1,
    micro_batch_sizes=(1,),
    saves=False,
    most_refinements=0,
    # Three timed, where one epoch takes all of the wished time: two say hardly anything.
    high_steps=4,
    epochs=3,
    warm_up_steps=1,
)
"""For a CPU: enough to see a table."""
