"""Which probe comes next: a pure function of the probes so far.

First the memory: short eager runs at small micro-batches, whose peaks lie on a line, give the
largest micro-batch that should fit; where one runs out of memory, a size between follows until
they do. Then the time, there and at its smaller neighbours until they get slower, or hardly
faster; a larger neighbour follows where the peaks seen under timing leave room for it, which
those of compiled code may do also where memory ran out without compilation.
Where it is not known whether compilation pays, this is done without, and then with it from the
fastest size on: larger ones as they fit, smaller ones where it is faster.
Then, where the steps vary so much that the real step, with its many micro-batches, is uncertain,
or where other GPUs or the host take part, the best one is timed again with longer accumulation.
Last, communication between GPUs is looked at, and a checkpoint is written.
Every rank of a session, and the session that carries on after one died, takes the same decision
from the same history.
"""

from collections.abc import Sequence

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.memory import next_ramp_size
from academic_pretraining.benchmarking.prediction import best_timing, guessed_micro_step_seconds
from academic_pretraining.benchmarking.probes import Probe, ProbeResult, Purpose
from academic_pretraining.benchmarking.refinement import refinement, with_deadline
from academic_pretraining.benchmarking.sizes import wanted_timing
from academic_pretraining.config import BatchPlan, TrainingConfig

# Of a timing run's short steps, in micro-batches of its long ones.
_LOW_SHARE = 1 / 4


def next_probe(
    config: TrainingConfig, effort: Effort, history: Sequence[ProbeResult]
) -> Probe | None:
    """Decide what to run next; `None` when the measurement is complete."""
    plans = _plans(config, effort)
    if not config.hardware.gpu.is_cpu:
        size = next_ramp_size(config, plans, effort, history)
        if size is not None:
            return _memory_probe(plans[size], effort)
    if wanted := wanted_timing(config, plans, effort, history):
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
