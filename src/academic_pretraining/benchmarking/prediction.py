"""What the probes of a configuration say about its training: step time and memory."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from academic_pretraining.benchmarking.effort import USABLE_MEMORY
from academic_pretraining.benchmarking.fit import StepTime, fit_step_time
from academic_pretraining.benchmarking.probes import Outcome, Probe, ProbeResult, Purpose
from academic_pretraining.config import TrainingConfig

CONTEXT_BYTES = 2**30
"""Of a device, for what is no tensor: a CUDA context takes 300 to 500 MiB, and NCCL has buffers."""


def best_timing(config: TrainingConfig, history: Sequence[ProbeResult]) -> ProbeResult | None:
    """Find the timing with the least predicted step time; `None` if nothing fitted."""
    return fastest_timing(config, timings(config, history))


def fastest_timing(config: TrainingConfig, timed: Sequence[ProbeResult]) -> ProbeResult | None:
    """Find the one with the least predicted step time; `None` where there is none."""
    return min(timed, key=lambda r: predicted_step_seconds(config, r), default=None)


def timings(config: TrainingConfig, history: Sequence[ProbeResult]) -> list[ProbeResult]:
    """Gather what was timed and would train.

    Timings of one micro-batch size, alike in compilation, are one: all samples, largest peaks. One
    that ran out of memory with longer accumulation, or that would at the real one, is left out.
    """
    found: dict[tuple[int, bool], ProbeResult] = {}
    too_large: set[tuple[int, bool]] = set()
    for result in history:
        if result.probe.purpose is not Purpose.TIMING:
            continue
        key = result.probe.variant
        if result.outcome is Outcome.OUT_OF_MEMORY:
            too_large.add(key)
        if result.outcome is not Outcome.OK:
            continue
        if earlier := found.get(key):
            result = replace(
                result,
                samples=earlier.samples + result.samples,
                peak_bytes=max(earlier.peak_bytes, result.peak_bytes),
                reserved_bytes=max(earlier.reserved_bytes, result.reserved_bytes),
                graphs=max(earlier.graphs, result.graphs),
                other_cpu_share=max(
                    (s for s in (earlier.other_cpu_share, result.other_cpu_share) if s is not None),
                    default=None,
                ),
            )
        found[key] = result
    return [
        result
        for key, result in found.items()
        if key not in too_large and _holds_inputs(config, result)
    ]


def _holds_inputs(config: TrainingConfig, result: ProbeResult) -> bool:
    """Whether the inputs of a real step, which the probe did not hold, fit beside the rest.

    Its peak with them may fill what any predicted one may; or, for it has run, all that a context
    leaves, together with what the allocator held but did not use.
    """
    waiting = waiting_bytes(config, result.probe)
    usable = USABLE_MEMORY * result.device_bytes
    left = result.device_bytes - CONTEXT_BYTES - max(result.peak_bytes, result.reserved_bytes)
    return not waiting or step_peak_bytes(config, result) <= usable or waiting <= left


def step_peak_bytes(config: TrainingConfig, result: ProbeResult) -> int:
    """Peak of a real step: a probe's own, and the inputs that it did not hold."""
    return result.peak_bytes + waiting_bytes(config, result.probe)


def waiting_bytes(config: TrainingConfig, probe: Probe) -> int:
    """Bytes of inputs that a real step holds on the device and a probe does not.

    The Trainer fetches all micro-batches of a step before the first one runs. On a CPU they are
    in the resident memory anyway.
    """
    if config.hardware.gpu.is_cpu:
        return 0
    plan = config.plan_at(probe.micro_batch_size)
    more = max(0, plan.gradient_accumulation_steps - probe.high)
    return more * plan.micro_batch_size * config.recipe.example_bytes


def predicted_step_time(config: TrainingConfig, result: ProbeResult) -> StepTime:
    """Step time at the real accumulation, from one timing."""
    plan = config.plan_at(result.probe.micro_batch_size)
    return fit_step_time(result.samples, plan.gradient_accumulation_steps)


def predicted_step_seconds(config: TrainingConfig, result: ProbeResult) -> float:
    """Seconds of one optimizer step at the real accumulation, from one timing."""
    return predicted_step_time(config, result).seconds


def guessed_micro_step_seconds(
    micro_batch_size: int, history: Sequence[ProbeResult]
) -> float | None:
    """Scale the largest run so far to this micro-batch size."""
    done = [r for r in history if r.samples]
    if not done:
        return None
    largest = max(done, key=lambda r: r.probe.micro_batch_size)
    seconds = statistics.median(s.seconds / s.accumulation for s in largest.samples)
    return seconds * micro_batch_size / largest.probe.micro_batch_size
