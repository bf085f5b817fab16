"""Which micro-batch is timed next, and whether it is compiled: pure."""

import math
from collections.abc import Collection, Mapping, Sequence

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.memory import (
    eagerly_too_large,
    fits,
    largest_fitting,
    middle,
    takes_less,
)
from academic_pretraining.benchmarking.prediction import (
    best_timing,
    fastest_timing,
    predicted_step_seconds,
    predicted_step_time,
    timings,
)
from academic_pretraining.benchmarking.probes import Outcome, ProbeResult, Purpose
from academic_pretraining.config import BatchPlan, TrainingConfig

# A smaller micro-batch gains less with each halving, and each may cost a compilation of minutes: in
# the six settings that timed three sizes on H100s a halving gained 0.3 to 6.2%, and the next one
# lost 5 to 84%, at least 6 points less (Pythia 160m, 410m and 1b; artifacts/results).
_LEAST_GAIN = 0.04


def wanted_timing(
    config: TrainingConfig,
    plans: Mapping[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
) -> tuple[int, bool] | None:
    """Choose the micro-batch of the next timing, and whether it is compiled; `None` for no more.

    Args:
        config: what is measured.
        plans: its plans, by micro-batch size in rising order.
        effort: how many sizes may be timed, and how much of the device may be used.
        history: the probes so far.
    """
    choices = (False,) if _compile_failed(history) else config.compile_choices
    if len(choices) == 1:
        size = _next_timing(config, plans, effort, history, compiles=choices[0])
        return None if size is None else (size, choices[0])
    best: ProbeResult | None = None
    for compiles in choices:
        alike = [
            r
            for r in history
            if r.probe.purpose is not Purpose.TIMING or r.probe.compile == compiles
        ]
        if best and all(r.probe.purpose is not Purpose.TIMING for r in alike):
            return best.probe.micro_batch_size, compiles
        own = best_timing(config, alike)
        fastest = fastest_timing(config, [r for r in (best, own) if r])
        size = _next_timing(config, plans, effort, alike, compiles=compiles)
        # Where the other one is faster, a larger size may still turn that round: compiled code
        # takes less memory. Where it took more at once, one smaller size is tried, too.
        tried = sum(r.probe.purpose is Purpose.TIMING for r in alike)
        is_known = own is not None or tried > 1
        beaten_at = best.probe.micro_batch_size if best and is_known and fastest is best else 0
        if size is not None and size > beaten_at:
            return size, compiles
        best = fastest
    return None


def _next_timing(
    config: TrainingConfig,
    plans: Mapping[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
    *,
    compiles: bool,
) -> int | None:
    tried = [
        r
        for r in history
        if r.probe.purpose is Purpose.TIMING and r.outcome is not Outcome.COMPILE_FAILED
    ]
    timed: dict[int, ProbeResult] = {}
    for result in timings(config, history):
        size = result.probe.micro_batch_size
        if size not in timed or predicted_step_seconds(config, result) < predicted_step_seconds(
            config, timed[size]
        ):
            timed[size] = result
    # Compiled code takes another memory, mostly less: what ran out with it says nothing of the
    # same size without it.
    alike = {r.probe.micro_batch_size for r in tried if r.probe.compile == compiles}
    too_large: float = min(alike - set(timed), default=math.inf)
    if not timed:
        return _below(plans, alike) if alike else largest_fitting(config, plans, effort, history)
    if len(timed) >= effort.most_timings:
        return None
    if config.hardware.gpu.is_cpu:
        # No memory is looked at; of the sizes that were named, all are timed.
        named = effort.micro_batch_sizes
        return min(
            (s for s in plans if s in named and s not in timed and s < too_large), default=None
        )
    best = min(timed, key=lambda size: predicted_step_seconds(config, timed[size]))
    # Larger: only where the peaks under timing say that it fits.
    if best == max(timed):
        larger = _larger(config, plans, effort, history, list(timed.values()), too_large, compiles)
        if larger is not None:
            return larger
    # Smaller: not after longer runs, which follow when this was decided.
    lengthened = sum(r.probe.variant == timed[best].probe.variant for r in tried) > 1
    if best == min(timed) and not lengthened and not _gained_little(config, timed, best):
        return max((s for s in plans if s < min(best, too_large)), default=None)
    return None


def _larger(
    config: TrainingConfig,
    plans: Mapping[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
    timed: Sequence[ProbeResult],
    too_large: float,
    compiles: bool,
) -> int | None:
    """Choose a size above the largest that was timed, which is the fastest of them."""
    own = [r for r in timed if r.probe.compile == compiles]
    best = max(timed, key=lambda r: r.probe.micro_batch_size)
    beyond = [s for s in plans if best.probe.micro_batch_size < s < too_large]
    if best not in own:
        # Compilation has failed at another size.
        by_ramp = largest_fitting(config, plans, effort, history)
        return by_ramp if by_ramp in beyond else None
    # What ran out of memory without compilation may fit with it, which mostly needs less.
    if not (compiles and takes_less(config, best, effort, history)):
        beyond = [s for s in beyond if s < eagerly_too_large(history)]
    fitting = [s for s in beyond if fits(config, s, own, effort, history)]
    if fitting and too_large < math.inf and fits(config, int(too_large), own, effort, history):
        # The peaks were wrong once, then.
        return middle(fitting, best.probe.micro_batch_size, too_large)
    return max(fitting, default=None)


def _below(plans: Mapping[int, BatchPlan], failed: Collection[int]) -> int | None:
    """Choose half of what failed; then the middle of what is left; and then the smallest."""
    smaller = [s for s in plans if s < min(failed)]
    if not smaller or len(failed) > 2:
        return min(smaller, default=None)
    if len(failed) == 1:
        return max((s for s in smaller if s <= min(failed) / 2), default=smaller[0])
    return middle(smaller, smaller[0], min(failed))


def _gained_little(config: TrainingConfig, timed: dict[int, ProbeResult], best: int) -> bool:
    """Whether the last step down to the best size, as far as it is known, is hardly faster."""
    larger = min((size for size in timed if size > best), default=None)
    if larger is None:
        return False
    before, now = (predicted_step_time(config, timed[size]) for size in (larger, best))
    error = math.hypot(*(t.standard_error_seconds / t.seconds for t in (before, now)))
    share = max(now.seconds / before.seconds - error, 0.0)
    return 1 - share ** (1 / math.log2(larger / best)) < _LEAST_GAIN


def _compile_failed(history: Sequence[ProbeResult]) -> bool:
    return any(r.outcome is Outcome.COMPILE_FAILED for r in history)
