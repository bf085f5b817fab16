"""Which probe comes next: a pure function of the probes so far.

First the memory: short eager runs at small micro-batches, whose peaks lie on a line, give the
largest micro-batch that should fit. Then the time, there and at its smaller neighbours until
they get slower; a larger neighbour follows where the peaks seen under timing leave room for it.
Last, where the steps vary so much that the real step, with its many micro-batches, is uncertain,
the best one is timed again with longer accumulation.
Every rank of a session, and the session that carries on after one died, takes the same decision
from the same history.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from academic_pretraining.benchmarking.fit import StepTime, fit_step_time
from academic_pretraining.benchmarking.probes import Outcome, Probe, ProbeResult, Purpose
from academic_pretraining.config import BatchPlan, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much time a measurement may take.

    Attributes:
        timing_seconds: wished length of one timing run, compilation left out.
        most_timings: micro-batch sizes to time at most.
        relative_error: standard error of the real step over its seconds that is good enough.
        most_refinements: longer runs at the best micro-batch to come there, at most.
        low, high_steps, epochs, warm_up_steps: shape of a timing run, as in `Probe`.
        usable_memory: share of the device's memory that a predicted peak may fill.
        micro_batch_sizes: sizes to consider; empty for all that divide the batch.
        memory_deadline_seconds: limit of a memory probe.
        timing_deadline_seconds: limit of a timing probe, compilation included.
    """

    timing_seconds: float = 12.0
    most_timings: int = 4
    relative_error: float = 0.01
    most_refinements: int = 1
    low: int = 1
    high_steps: int = 4
    epochs: int = 2
    warm_up_steps: int = 2
    usable_memory: float = 0.94
    micro_batch_sizes: tuple[int, ...] = ()
    memory_deadline_seconds: float = 300.0
    timing_deadline_seconds: float = 1500.0


QUICK = Effort(
    timing_seconds=4.0,
    most_timings=1,
    micro_batch_sizes=(1,),
    most_refinements=0,
    high_steps=2,
    warm_up_steps=1,
)
"""For a CPU: enough to see a table."""


def next_probe(
    config: TrainingConfig, effort: Effort, history: Sequence[ProbeResult]
) -> Probe | None:
    """Decide what to run next; `None` when the measurement is complete."""
    plans = _plans(config, effort)
    if not config.hardware.gpu.is_cpu:
        for size in _ramp(plans, effort, history):
            return _memory_probe(plans[size], effort)
    compiles = config.compiles and not _compile_failed(history)
    size = _next_timing(plans, effort, history)
    if size is None:
        return _refinement(config, effort, history, compiles=compiles)
    return _timing_probe(plans[size], effort, history, compiles=compiles)


def best_timing(config: TrainingConfig, history: Sequence[ProbeResult]) -> ProbeResult | None:
    """Find the timing with the least predicted step time; `None` if nothing fitted."""
    return min(timings(history), key=lambda r: predicted_step_seconds(config, r), default=None)


def timings(history: Sequence[ProbeResult]) -> list[ProbeResult]:
    """Gather the timings, those of one micro-batch size as one: all samples, largest peaks."""
    found: dict[int, ProbeResult] = {}
    for result in history:
        if result.probe.purpose is not Purpose.TIMING or result.outcome is not Outcome.OK:
            continue
        size = result.probe.micro_batch_size
        if earlier := found.get(size):
            # The larger peak is that of the longer accumulation, whose inputs waited longer.
            result = replace(
                result,
                samples=earlier.samples + result.samples,
                peak_bytes=max(earlier.peak_bytes, result.peak_bytes),
                reserved_bytes=max(earlier.reserved_bytes, result.reserved_bytes),
                graphs=max(earlier.graphs, result.graphs),
            )
        found[size] = result
    return list(found.values())


def predicted_step_time(config: TrainingConfig, result: ProbeResult) -> StepTime:
    """Step time at the real accumulation, from one timing."""
    plan = {p.micro_batch_size: p for p in config.plans()}[result.probe.micro_batch_size]
    return fit_step_time(result.samples, plan.gradient_accumulation_steps)


def predicted_step_seconds(config: TrainingConfig, result: ProbeResult) -> float:
    """Seconds of one optimizer step at the real accumulation, from one timing."""
    return predicted_step_time(config, result).seconds


def _plans(config: TrainingConfig, effort: Effort) -> dict[int, BatchPlan]:
    plans = {plan.micro_batch_size: plan for plan in config.plans()}
    if wanted := [size for size in effort.micro_batch_sizes if size in plans]:
        return {size: plans[size] for size in sorted(wanted)}
    return plans


def _ramp(plans: dict[int, BatchPlan], effort: Effort, history: Sequence[ProbeResult]) -> list[int]:
    """List the micro-batch sizes that the memory line still needs, next one first."""
    memory = [r for r in history if r.probe.purpose is Purpose.MEMORY]
    if any(r.outcome is not Outcome.OK for r in memory) or len(plans) == 1:
        return []
    if any(r.probe.purpose is Purpose.TIMING for r in history):
        return []
    sizes = list(plans)
    wanted = [sizes[0], next((s for s in sizes if s >= 4 * sizes[0]), sizes[-1])]
    if len(memory) >= 2:
        # A third point well up the line, where the small sizes' granularity no longer shows.
        largest = _largest_fitting(plans, effort, memory)
        wanted.append(max((s for s in sizes if s <= largest / 2), default=sizes[0]))
    done = {r.probe.micro_batch_size for r in memory}
    return [size for size in wanted if size not in done]


def _largest_fitting(
    plans: dict[int, BatchPlan], effort: Effort, results: Sequence[ProbeResult]
) -> int:
    """Extrapolate the peaks' line to the usable memory."""
    peaks = sorted({r.probe.micro_batch_size: r.peak_bytes for r in results}.items())
    (small, low), (large, high) = peaks[0], peaks[-1]
    slope = (high - low) / (large - small) if large > small else high / large
    limit = effort.usable_memory * results[-1].device_bytes
    fitting = [s for s in plans if low + slope * (s - small) <= limit]
    return max(fitting, default=min(plans))


def _next_timing(
    plans: dict[int, BatchPlan], effort: Effort, history: Sequence[ProbeResult]
) -> int | None:
    sizes = list(plans)
    tried = [
        r
        for r in history
        if r.probe.purpose is Purpose.TIMING and r.outcome is not Outcome.COMPILE_FAILED
    ]
    if not tried:
        return _first_timing(plans, effort, history)
    timed = {r.probe.micro_batch_size: r for r in timings(history)}
    failed = {r.probe.micro_batch_size for r in history if r.outcome is Outcome.OUT_OF_MEMORY}
    too_large = min(failed - set(timed), default=sizes[-1] + 1)
    if not timed:
        return max(
            (s for s in sizes if s < min(r.probe.micro_batch_size for r in tried)), default=None
        )
    if len(timed) >= effort.most_timings:
        return None
    per_example = {
        size: fit_step_time(r.samples, plans[size].gradient_accumulation_steps).seconds
        / plans[size].global_batch_size
        for size, r in timed.items()
    }
    best = min(per_example, key=per_example.__getitem__)
    # Larger: only where the peaks under timing say that it fits.
    if best == max(timed):
        larger = [s for s in sizes if best < s < too_large and _fits(s, best, effort, history)]
        if larger:
            return max(larger)
    if best == min(timed):
        return max((s for s in sizes if s < min(best, too_large)), default=None)
    return None


def _first_timing(
    plans: dict[int, BatchPlan], effort: Effort, history: Sequence[ProbeResult]
) -> int:
    memory = [r for r in history if r.probe.purpose is Purpose.MEMORY and r.outcome is Outcome.OK]
    if not memory:
        return min(plans)
    largest = _largest_fitting(plans, effort, memory)
    too_large = [r.probe.micro_batch_size for r in history if r.outcome is Outcome.OUT_OF_MEMORY]
    return max(
        (s for s in plans if s <= largest and s < min(too_large, default=s + 1)), default=min(plans)
    )


def _refinement(
    config: TrainingConfig, effort: Effort, history: Sequence[ProbeResult], *, compiles: bool
) -> Probe | None:
    """Lengthen the lever where the real step follows too uncertainly from short ones."""
    best = best_timing(config, history)
    if best is None:
        return None
    step = predicted_step_time(config, best)
    size = best.probe.micro_batch_size
    runs = [
        r for r in history if r.probe.purpose is Purpose.TIMING and r.probe.micro_batch_size == size
    ]
    enough = step.standard_error_seconds <= effort.relative_error * step.seconds
    failed = any(r.outcome is not Outcome.OK for r in runs if r.probe.compile == compiles)
    if enough or failed or not step.extrapolated or len(runs) > effort.most_refinements:
        return None
    longest = max(r.probe.high for r in runs)
    accumulation = config.plan_at(size).gradient_accumulation_steps
    return replace(best.probe, high=min(accumulation, 4 * longest), low=longest, compile=compiles)


def _fits(size: int, best: int, effort: Effort, history: Sequence[ProbeResult]) -> bool:
    """Scale the part of the timed peak that grows with the micro-batch."""
    peak = next(
        r
        for r in reversed(history)
        if r.probe.purpose is Purpose.TIMING
        and r.probe.micro_batch_size == best
        and r.outcome is Outcome.OK
    )
    memory = {
        r.probe.micro_batch_size: r.peak_bytes
        for r in history
        if r.probe.purpose is Purpose.MEMORY and r.outcome is Outcome.OK
    }
    if len(memory) < 2:
        return False
    (small, low), (large, high) = sorted(memory.items())[0], sorted(memory.items())[-1]
    static = max(0.0, low - (high - low) / (large - small) * small)
    growing = max(0.0, peak.peak_bytes - static)
    return static + growing * size / best <= effort.usable_memory * peak.device_bytes


def _compile_failed(history: Sequence[ProbeResult]) -> bool:
    return any(r.outcome is Outcome.COMPILE_FAILED for r in history)


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
    micro_batches = 2.0 * effort.timing_seconds
    if guess := _guessed_micro_step_seconds(plan.micro_batch_size, history):
        micro_batches = effort.timing_seconds / guess
    accumulation = plan.gradient_accumulation_steps
    if accumulation * (effort.warm_up_steps + 4) <= max(micro_batches, 12):
        high, low = accumulation, 0
        epochs, high_steps = 1, min(30, max(6, round(micro_batches / accumulation)))
    else:
        low, epochs, high_steps = effort.low, effort.epochs, effort.high_steps
        high = round((micro_batches / epochs - low) / high_steps)
        high = max(low + 2, min(accumulation, high))
    if high <= low:
        high, low, epochs, high_steps = accumulation, 0, 1, 6
    return Probe(
        purpose=Purpose.TIMING,
        micro_batch_size=plan.micro_batch_size,
        high=high,
        low=low,
        high_steps=high_steps,
        epochs=epochs,
        warm_up_steps=effort.warm_up_steps,
        compile=compiles,
        deadline_seconds=effort.timing_deadline_seconds,
    )


def _guessed_micro_step_seconds(
    micro_batch_size: int, history: Sequence[ProbeResult]
) -> float | None:
    """Scale the largest run so far to this micro-batch size."""
    done = [r for r in history if r.samples]
    if not done:
        return None
    largest = max(done, key=lambda r: r.probe.micro_batch_size)
    seconds = statistics.median(s.seconds / s.accumulation for s in largest.samples)
    return seconds * micro_batch_size / largest.probe.micro_batch_size
