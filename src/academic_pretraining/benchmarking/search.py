"""Which probe comes next: a pure function of the probes so far.

First the memory: short eager runs at small micro-batches, whose peaks lie on a line, give the
largest micro-batch that should fit. Then the time, there and at its smaller neighbours until
they get slower, or hardly faster; a larger neighbour follows where the peaks seen under timing
leave room for it.
Where it is not known whether compilation pays, this is done without, and then with it from the
fastest size on: larger ones as they fit, smaller ones where it is faster.
Then, where the steps vary so much that the real step, with its many micro-batches, is uncertain,
or it is far and other GPUs or the host take part, the best one is timed again with longer
accumulation. Last, communication between GPUs is looked at, and a checkpoint is written.
Every rank of a session, and the session that carries on after one died, takes the same decision
from the same history.
"""

import math
from collections.abc import Sequence

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.memory import fits, largest_fitting, ramp_sizes
from academic_pretraining.benchmarking.prediction import (
    best_timing,
    fastest_timing,
    guessed_micro_step_seconds,
    predicted_step_seconds,
    predicted_step_time,
    timings,
)
from academic_pretraining.benchmarking.probes import Outcome, Probe, ProbeResult, Purpose
from academic_pretraining.benchmarking.refinement import refinement, with_deadline
from academic_pretraining.config import BatchPlan, TrainingConfig

# Of a timing run's short steps, in micro-batches of its long ones.
_LOW_SHARE = 1 / 4
# A smaller micro-batch gains less with each halving, and each may cost a compilation of minutes: in
# the five settings that timed three sizes on H100s a halving gained 0.3 to 2.9%, and the next one
# lost 5 to 14%, at least 6 points less (Pythia 160m, 410m and 1b; artifacts/results).
_LEAST_GAIN = 0.04


def next_probe(
    config: TrainingConfig, effort: Effort, history: Sequence[ProbeResult]
) -> Probe | None:
    """Decide what to run next; `None` when the measurement is complete."""
    plans = _plans(config, effort)
    if not config.hardware.gpu.is_cpu:
        for size in ramp_sizes(config, plans, effort, history):
            return _memory_probe(plans[size], effort)
    if wanted := _wanted_timing(config, plans, effort, history):
        size, compiles = wanted
        return _timing_probe(plans[size], effort, history, compiles=compiles)
    return (
        refinement(config, effort, history)
        or _communication_probe(config, plans, effort, history)
        or _saving_probe(config, plans, effort, history)
    )


def _plans(config: TrainingConfig, effort: Effort) -> dict[int, BatchPlan]:
    plans = {plan.micro_batch_size: plan for plan in config.plans()}
    if wanted := [size for size in effort.micro_batch_sizes if size in plans]:
        return {size: plans[size] for size in sorted(wanted)}
    return plans


def _wanted_timing(
    config: TrainingConfig,
    plans: dict[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
) -> tuple[int, bool] | None:
    """Choose the micro-batch of the next timing, and whether it is compiled."""
    choices = (False,) if _compile_failed(history) else config.compile_choices
    if len(choices) == 1:
        size = _next_timing(config, plans, effort, history)
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
        fastest = fastest_timing(config, [r for r in (best, best_timing(config, alike)) if r])
        size = _next_timing(config, plans, effort, alike)
        # Where the other one is faster, a larger size may still turn that round: compiled code
        # takes less memory.
        beaten_at = best.probe.micro_batch_size if best and fastest is best else 0
        if size is not None and size > beaten_at:
            return size, compiles
        best = fastest
    return None


def _next_timing(
    config: TrainingConfig,
    plans: dict[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
) -> int | None:
    sizes = list(plans)
    tried = [
        r
        for r in history
        if r.probe.purpose is Purpose.TIMING and r.outcome is not Outcome.COMPILE_FAILED
    ]
    if not tried:
        return _first_timing(config, plans, effort, history)
    timed: dict[int, ProbeResult] = {}
    for result in timings(config, history):
        size = result.probe.micro_batch_size
        if size not in timed or predicted_step_seconds(config, result) < predicted_step_seconds(
            config, timed[size]
        ):
            timed[size] = result
    failed = {r.probe.micro_batch_size for r in tried} - set(timed)
    failed |= {r.probe.micro_batch_size for r in history if r.outcome is Outcome.OUT_OF_MEMORY}
    too_large = min(failed - set(timed), default=sizes[-1] + 1)
    if not timed:
        return max(
            (s for s in sizes if s < min(r.probe.micro_batch_size for r in tried)), default=None
        )
    if len(timed) >= effort.most_timings:
        return None
    best = min(timed, key=lambda size: predicted_step_seconds(config, timed[size]))
    # Larger: only where the peaks under timing say that it fits.
    if best == max(timed):
        larger = [
            s
            for s in sizes
            if best < s < too_large and fits(config, s, timed[best], effort, history)
        ]
        if larger:
            return max(larger)
    # Smaller: not after longer runs, which follow when this was decided.
    lengthened = sum(r.probe.micro_batch_size == best for r in tried) > 1
    if best == min(timed) and not lengthened and not _gained_little(config, timed, best):
        return max((s for s in sizes if s < min(best, too_large)), default=None)
    return None


def _gained_little(config: TrainingConfig, timed: dict[int, ProbeResult], best: int) -> bool:
    """Whether the last step down to the best size, as far as it is known, is hardly faster."""
    larger = min((size for size in timed if size > best), default=None)
    if larger is None:
        return False
    before, now = (predicted_step_time(config, timed[size]) for size in (larger, best))
    error = math.hypot(*(t.standard_error_seconds / t.seconds for t in (before, now)))
    share = max(now.seconds / before.seconds - error, 0.0)
    return 1 - share ** (1 / math.log2(larger / best)) < _LEAST_GAIN


def _first_timing(
    config: TrainingConfig,
    plans: dict[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
) -> int:
    memory = [r for r in history if r.probe.purpose is Purpose.MEMORY and r.outcome is Outcome.OK]
    if not memory:
        return min(plans)
    largest = largest_fitting(config, plans, effort, memory)
    too_large = [r.probe.micro_batch_size for r in history if r.outcome is Outcome.OUT_OF_MEMORY]
    return max(
        (s for s in plans if s <= largest and s < min(too_large, default=s + 1)), default=min(plans)
    )


def _compile_failed(history: Sequence[ProbeResult]) -> bool:
    return any(r.outcome is Outcome.COMPILE_FAILED for r in history)


def _communication_probe(
    config: TrainingConfig,
    plans: dict[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
) -> Probe | None:
    """Profile steps of two lengths; what is exchanged does not depend on the micro-batch."""
    hardware = config.hardware
    done = any(r.probe.purpose is Purpose.COMMUNICATION for r in history)
    if not effort.profiles or done or hardware.gpu.is_cpu or hardware.world_size == 1:
        return None
    if best_timing(config, history) is None:
        return None
    return Probe(
        purpose=Purpose.COMMUNICATION,
        micro_batch_size=min(plans),
        high=3,
        low=1,
        high_steps=2,
        # At most: as many as fp16 overflows leave enough of.
        epochs=4,
        compile=False,
        deadline_seconds=effort.memory_deadline_seconds,
    )


def _saving_probe(
    config: TrainingConfig,
    plans: dict[int, BatchPlan],
    effort: Effort,
    history: Sequence[ProbeResult],
) -> Probe | None:
    """Write one checkpoint, unless it is too large to; how fast it trains plays no part."""
    done = any(r.probe.purpose is Purpose.SAVING for r in history)
    # Weights and two moments in fp32.
    size = 12 * config.recipe.parameter_count
    if not effort.saves or done or size > effort.largest_checkpoint_bytes:
        return None
    if best_timing(config, history) is None:
        return None
    return Probe(
        purpose=Purpose.SAVING,
        micro_batch_size=min(plans),
        high=1,
        # Adam has no state before its first step, which fp16 overflows may put off.
        high_steps=4,
        compile=False,
        deadline_seconds=effort.memory_deadline_seconds,
    )


def _memory_probe(plan: BatchPlan, effort: Effort) -> Probe:
    return Probe(
        purpose=Purpose.MEMORY,
        micro_batch_size=plan.micro_batch_size,
        # Two, so that gradients are alive through a forward pass, as in training.
        high=min(2, plan.gradient_accumulation_steps),
        high_steps=3,
        compile=False,
        deadline_seconds=effort.memory_deadline_seconds,
    )


def _timing_probe(
    plan: BatchPlan, effort: Effort, history: Sequence[ProbeResult], *, compiles: bool
) -> Probe:
    guess = guessed_micro_step_seconds(plan.micro_batch_size, history) or 0.0
    micro_batches = effort.timing_seconds / guess if guess else 2.0 * effort.timing_seconds
    accumulation = plan.gradient_accumulation_steps
    fewest = effort.warm_up_steps + 4
    if accumulation * fewest <= max(micro_batches, 2 * fewest):
        high, low = accumulation, 0
        epochs, most_steps = 1, min(30, max(fewest, round(micro_batches / accumulation)))
    else:
        # Few long steps, not many short ones: on an H200 at its power limit a step of 1, 3, 12 and
        # 32 micro-batches took 0.2101, 0.2066, 0.2045 and 0.2037 s for each.
        epochs, most_steps = effort.epochs, effort.high_steps
        high = round(micro_batches / epochs / (most_steps + _LOW_SHARE))
        high = max(3, min(accumulation, high))
        low = max(1, round(_LOW_SHARE * high))
    high_steps, warm_up_steps = effort.steps_of(high * guess, most_steps)
    return with_deadline(
        Probe(
            purpose=Purpose.TIMING,
            micro_batch_size=plan.micro_batch_size,
            high=high,
            low=low,
            high_steps=high_steps,
            epochs=epochs,
            enough_seconds=effort.timing_seconds,
            warm_up_steps=warm_up_steps,
            compile=compiles,
            deadline_seconds=effort.timing_deadline_seconds,
        ),
        guess,
    )
