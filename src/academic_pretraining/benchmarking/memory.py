"""Which micro-batch should fit, from the peaks of small ones, which lie on a line; pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.prediction import CONTEXT_BYTES, step_peak_bytes
from academic_pretraining.benchmarking.probes import (
    OPTIONAL,
    Outcome,
    ProbeResult,
    Purpose,
)
from academic_pretraining.config import BatchPlan, TrainingConfig

# The second size is so many times the first, a line through three peaks or more is trusted so far,
# and where little is known no step is longer.
_FAR = 4
# A line is known where so much of its largest peak has grown from its smallest. On H100s that of
# four examples had grown by 14 to 71%, and the line held, but for vit with checkpointing: by 0.7%,
# after which 4,096 should have fitted, and 2,048 did not (artifacts/results).
_KNOWN_SHARE = 0.1
# Less will do where three peaks or more grow alike: what hid the growth at small sizes would bend
# the line. Where the model's states take most of the device, hardly more can grow.
_STRAIGHT_SHARE, _BEND = 0.02, 0.1
# Of what grows without compilation, what must have grown with it to be told from the rest: on H100s
# compiled code's took 0.36 times as much and more (artifacts/results).
_COMPILED_SHARE = 0.2


def next_ramp_size(
    config: TrainingConfig,
    plans: Mapping[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
) -> int | None:
    """Choose the micro-batch size whose peak the line still needs; `None` where it needs none.

    Args:
        config: what is measured.
        plans: its plans, by micro-batch size in rising order.
        effort: how much of the device may be used.
        history: the probes so far.
    """
    memory = [r for r in history if r.probe.purpose is Purpose.MEMORY]
    if len(plans) == 1 or any(r.probe.purpose is Purpose.TIMING for r in history):
        return None
    if not memory:
        return min(plans)
    peaks = _peaks(config, memory)
    if not peaks:
        return None
    largest, limit, too_large = max(peaks), _limit(effort, history), eagerly_too_large(history)
    between = [s for s in plans if largest < s < too_large]
    if not between:
        return None
    if len(peaks) == 1:
        first = next((s for s in between if s >= _FAR * largest), max(between))
        return first if too_large == math.inf else middle(between, largest, too_large)
    line = _line(peaks)
    if too_large < math.inf and line.at(too_large) <= limit:
        # The line is wrong, then.
        return middle(between, largest, too_large)
    fitting = max((s for s in between if line.at(s) <= limit), default=largest)
    if len(peaks) > 2 and fitting <= _FAR * largest:
        return None
    # Well up the line, where the small sizes' granularity no longer shows.
    confirming = [s for s in between if s <= fitting / 2]
    if not line.known:
        # No peak grows faster than the size.
        certain = largest * limit / line.peak
        confirming = [s for s in confirming if s <= max(_FAR * largest, certain)]
        if not confirming and fitting > largest and config.compiles:
            # Of states that take most of the device: with a third peak it is known what is left
            # for larger sizes, compiled.
            confirming = [fitting]
    return max(confirming, default=None)


def largest_fitting(
    config: TrainingConfig,
    plans: Mapping[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
) -> int:
    """Extrapolate the line through the peaks to the usable memory, short of what ran out of it.

    Args:
        config: what is measured.
        plans: its plans, by micro-batch size.
        effort: how much of the device may be used.
        history: the probes so far; without a peak nothing is known but the smallest size.
    """
    peaks = _peaks(config, history)
    if not peaks:
        return min(plans)
    line, limit, too_large = _line(peaks), _limit(effort, history), eagerly_too_large(history)
    return max((s for s in plans if line.at(s) <= limit and s < too_large), default=min(plans))


def fits(
    config: TrainingConfig,
    size: int,
    timed: Sequence[ProbeResult],
    effort: Effort,
    history: Sequence[ProbeResult],
) -> bool:
    """Say whether a larger micro-batch should fit than those timed, by their peaks.

    Those of several lie on a line. Of one, what grows with the size is scaled, which the memory
    ramp tells from the rest; and all of it, where hardly anything has grown. What the allocator
    holds has to fit, too, were it so many times the peak again; it may be less, which a size in
    between shows. By that six of seven compiled sizes would not have been tried which ran out of
    memory on H100s (artifacts/README.md).

    Args:
        config: what is measured.
        size: the larger micro-batch.
        timed: timings of smaller ones, with compilation all or without all.
        effort: how much of the device may be used.
        history: the probes so far.
    """
    peaks = {r.probe.micro_batch_size: step_peak_bytes(config, r) for r in timed}
    memory = _peaks(config, history)
    line = _line(peaks)
    known = line.known
    if len(peaks) == 1 and len(memory) > 1:
        ramp = _line(memory)
        grown = line.peak - min(line.peak, max(0.0, ramp.at(0)))
        line = _Line(line.size, line.peak, grown / line.size, grown)
        known = ramp.known and grown >= _COMPILED_SHARE * ramp.slope * line.size
    if not known:
        line = _Line(line.size, line.peak, line.peak / line.size, line.peak)
    largest = max(timed, key=lambda r: r.probe.micro_batch_size)
    held = max(1.0, largest.reserved_bytes / largest.peak_bytes) * line.at(size)
    return line.at(size) <= _limit(effort, timed) and held <= largest.device_bytes - CONTEXT_BYTES


def takes_less(
    config: TrainingConfig, timed: ProbeResult, effort: Effort, history: Sequence[ProbeResult]
) -> bool:
    """Say whether compiled code may fit where the same size ran out of memory without compilation.

    There that would have taken all of the device at least. So where compilation saves more than
    has to stay free, it may.

    Args:
        config: what is measured.
        timed: a compiled timing.
        effort: how much of the device may be used.
        history: the probes so far.
    """
    size = timed.probe.micro_batch_size
    memory = _peaks(config, history)
    if not memory or size >= eagerly_too_large(history):
        return True
    return step_peak_bytes(config, timed) <= effort.usable_memory * _line(memory).at(size)


def eagerly_too_large(history: Iterable[ProbeResult]) -> float:
    """Find the smallest micro-batch that ran out of memory without compilation; else infinity."""
    return min(
        (
            r.probe.micro_batch_size
            for r in history
            if r.outcome is Outcome.OUT_OF_MEMORY
            and not r.probe.compile
            and r.probe.purpose not in OPTIONAL
        ),
        default=math.inf,
    )


class _Line(NamedTuple):
    """Memory over micro-batch size.

    Attributes:
        size, peak: of the largest one that was run.
        slope: bytes for each example.
        grown: bytes that it has more than the smallest.
        straight: whether three peaks or more grow alike.
    """

    size: int
    peak: float
    slope: float
    grown: float
    straight: bool = False

    @property
    def known(self) -> bool:
        return self.grown >= (_STRAIGHT_SHARE if self.straight else _KNOWN_SHARE) * self.peak

    def at(self, size: float) -> float:
        return self.peak + self.slope * (size - self.size)


def _line(peaks: Mapping[int, int]) -> _Line:
    """Draw a line from the largest peak: through the smallest, or through the one before.

    Whichever is steeper, for which phase of a step has the peak may change with the size, and the
    one that grows faster takes over. A single peak may grow as the size does.
    """
    *smaller, (size, peak) = sorted(peaks.items())
    ends = (smaller[0], smaller[-1]) if smaller else ((0, 0),)
    slopes = [(peak - low) / (size - small) for small, low in ends]
    grown, slope = peak - ends[0][1], max(slopes)
    straight = len(smaller) > 1 and max(slopes) - min(slopes) <= _BEND * slope
    return _Line(size, peak, slope, grown, straight)


def _peaks(config: TrainingConfig, history: Iterable[ProbeResult]) -> dict[int, int]:
    """Gather the memory ramp: bytes at each micro-batch size, with a real step's inputs."""
    return {
        r.probe.micro_batch_size: step_peak_bytes(config, r)
        for r in history
        if r.probe.purpose is Purpose.MEMORY and r.outcome is Outcome.OK
    }


def _limit(effort: Effort, history: Iterable[ProbeResult]) -> float:
    return effort.usable_memory * max(r.device_bytes for r in history)


def middle(sizes: Sequence[int], small: float, large: float) -> int:
    """Choose of some sizes the one that parts two others most evenly, in multiples."""
    return min(sizes, key=lambda size: abs(math.log(size * size / small / large)))
