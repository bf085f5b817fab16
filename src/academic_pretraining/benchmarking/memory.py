"""Which micro-batch should fit, from the peaks of small ones, which lie on a line; pure."""

from collections.abc import Mapping, Sequence

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.prediction import waiting_bytes
from academic_pretraining.benchmarking.probes import Outcome, ProbeResult, Purpose
from academic_pretraining.config import BatchPlan, TrainingConfig


def ramp_sizes(
    config: TrainingConfig,
    plans: Mapping[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
) -> list[int]:
    """List the micro-batch sizes whose peaks the line still needs, the next one first.

    Args:
        config: what is measured.
        plans: its plans, by micro-batch size in rising order.
        effort: how much of the device may be used.
        history: the probes so far.
    """
    memory = [r for r in history if r.probe.purpose is Purpose.MEMORY]
    if any(r.outcome is not Outcome.OK for r in memory) or len(plans) == 1:
        return []
    if any(r.probe.purpose is Purpose.TIMING for r in history):
        return []
    sizes = list(plans)
    wanted = [sizes[0], next((s for s in sizes if s >= 4 * sizes[0]), sizes[-1])]
    if len(memory) >= 2:
        # A third point well up the line, where the small sizes' granularity no longer shows.
        largest = largest_fitting(config, plans, effort, memory)
        wanted.append(max((s for s in sizes if s <= largest / 2), default=sizes[0]))
    done = {r.probe.micro_batch_size for r in memory}
    return [size for size in wanted if size not in done]


def largest_fitting(
    config: TrainingConfig,
    plans: Mapping[int, BatchPlan],
    effort: Effort,
    results: Sequence[ProbeResult],
) -> int:
    """Extrapolate the line through the smallest and the largest peak to the usable memory.

    Args:
        config: what is measured.
        plans: its plans, by micro-batch size.
        effort: how much of the device may be used.
        results: probes with peaks, one at least.
    """
    peaks = sorted(
        {
            r.probe.micro_batch_size: r.peak_bytes + waiting_bytes(config, r.probe) for r in results
        }.items()
    )
    (small, low), (large, high) = peaks[0], peaks[-1]
    slope = (high - low) / (large - small) if large > small else high / large
    limit = effort.usable_memory * results[-1].device_bytes
    fitting = [s for s in plans if low + slope * (s - small) <= limit]
    return max(fitting, default=min(plans))


def fits(
    config: TrainingConfig,
    size: int,
    best: ProbeResult,
    effort: Effort,
    history: Sequence[ProbeResult],
) -> bool:
    """Say whether a larger micro-batch should fit: what of a timed peak grows with it is scaled.

    Args:
        config: what is measured.
        size: the larger micro-batch.
        best: a timing of a smaller one.
        effort: how much of the device may be used.
        history: the probes so far; without two peaks on a line nothing is known, and it does not.
    """
    memory = sorted(
        {
            r.probe.micro_batch_size: r.peak_bytes
            for r in history
            if r.probe.purpose is Purpose.MEMORY and r.outcome is Outcome.OK
        }.items()
    )
    if len(memory) < 2:
        return False
    (small, low), (large, high) = memory[0], memory[-1]
    static = max(0.0, low - (high - low) / (large - small) * small)
    growing = max(0.0, best.peak_bytes - static)
    # The inputs of a whole step are the same for all plans.
    needed = static + growing * size / best.probe.micro_batch_size
    needed += waiting_bytes(config, best.probe)
    return needed <= effort.usable_memory * best.device_bytes
