"""Whether what was timed has to be timed again, with longer accumulation: pure."""

from collections.abc import Sequence
from dataclasses import replace

from academic_pretraining.benchmarking.effort import LEAST_TIMED_STEPS, Effort
from academic_pretraining.benchmarking.prediction import (
    fastest_timing,
    guessed_micro_step_seconds,
    predicted_step_time,
    timings,
)
from academic_pretraining.benchmarking.probes import Outcome, Probe, ProbeResult, Purpose
from academic_pretraining.config import TrainingConfig

# Runs are so many times longer than the ones before; or as long as the real step, where that is at
# most so many times longer still: it leaves nothing to extrapolate, and so no further run.
_LENGTHENED, _NEARLY = 4, 1.5
# Where several GPUs or the host take part, a step's first micro-batches are not like the rest. Of
# the 26 such settings on H100s that were lengthened, steps of 3 to 10 had predicted the real one 3%
# off (median; 14% at most, and 9% with an estimated error of 1.7%), also where that is no more than
# four times as long (3 to 8, 4 to 16: 0.1, 0.6, 1.3, 2.1, 2.7, 3.7%); those of four settings of one
# GPU alone 1%, 2.5% at most (artifacts/README.md). So there longer ones confirm a prediction.


def refinement(
    config: TrainingConfig, effort: Effort, history: Sequence[ProbeResult]
) -> Probe | None:
    """Lengthen the lever where the real step follows from short ones too uncertainly.

    So also, once, where several GPUs or the host take part.

    Of the best timing, or else of one that makes no sense.
    """
    fitting = timings(config, history)
    best = fastest_timing(config, fitting)
    impossible = [r for r in fitting if predicted_step_time(config, r).impossible]
    for timed in [best, *impossible] if best else []:
        if probe := _lengthened(config, effort, history, timed):
            return probe
    return None


def _lengthened(
    config: TrainingConfig,
    effort: Effort,
    history: Sequence[ProbeResult],
    timed: ProbeResult,
) -> Probe | None:
    step = predicted_step_time(config, timed)
    size = timed.probe.micro_batch_size
    runs = [
        r
        for r in history
        if r.probe.purpose is Purpose.TIMING and r.probe.variant == timed.probe.variant
    ]
    failed = any(r.outcome is not Outcome.OK for r in runs)
    longest = max(r.probe.high for r in runs)
    accumulation = config.plan_at(size).gradient_accumulation_steps
    together = config.hardware.world_size > 1 or config.method.offloading
    confirmed = not together or len(runs) > 1
    certain = step.half_width_seconds <= effort.relative_half_width * step.seconds
    enough = certain and confirmed and not step.impossible
    # Without a second run there would be no result at all.
    most = max(effort.most_refinements, int(step.impossible))
    if enough or failed or not step.extrapolated or len(runs) > most:
        return None
    lengthened = _LENGTHENED * longest
    high = accumulation if accumulation <= _NEARLY * lengthened else lengthened
    guess = guessed_micro_step_seconds(size, runs) or 0.0
    most_steps = min(timed.probe.high_steps, effort.warm_up_steps + LEAST_TIMED_STEPS)
    high_steps, warm_up_steps = effort.steps_of(high * guess, most_steps)
    probe = replace(
        timed.probe,
        high=high,
        low=longest,
        high_steps=high_steps,
        warm_up_steps=warm_up_steps,
        deadline_seconds=effort.timing_deadline_seconds,
    )
    return with_deadline(probe, guess)


def with_deadline(probe: Probe, micro_step_seconds: float) -> Probe:
    """Allow three times the expected duration beside what building and compiling may take.

    Args:
        probe: a timing, whose deadline allows for building and compiling.
        micro_step_seconds: what a micro-batch is expected to take; 0 if unknown.
    """
    expected = probe.epochs * probe.micro_batches_per_epoch * micro_step_seconds
    return replace(probe, deadline_seconds=probe.deadline_seconds + 3 * expected)
