"""From the probes of a setting to its record: pure, and the last word on what is refused."""

from collections.abc import Sequence
from dataclasses import replace

from academic_pretraining.analytic import mfu
from academic_pretraining.benchmarking.communication import communication_seconds
from academic_pretraining.benchmarking.launch import SessionEnd
from academic_pretraining.benchmarking.prediction import (
    fastest_timing,
    predicted_step_time,
    timings,
    waiting_bytes,
)
from academic_pretraining.benchmarking.probes import (
    OPTIONAL,
    CommunicationSample,
    Outcome,
    ProbeResult,
    Purpose,
)
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import MeasurementError
from academic_pretraining.methods import Backend
from academic_pretraining.records import Measurement, Timing


def conclude(
    config: TrainingConfig,
    history: list[ProbeResult],
    ends: list[SessionEnd],
    *,
    wall_seconds: float,
    company: str = "",
) -> Measurement:
    """Sum a measurement up.

    Args:
        config: what was measured.
        history: all its probes, failed ones included.
        ends: its sessions.
        wall_seconds: that it took, waiting for others left out.
        company: who else was on the GPUs.

    Raises:
        MeasurementError: the steps vary too much to say anything, or the model's FLOPs come faster
            than matrix products alone.
    """
    environment = next((end.environment for end in ends if end.environment), {})
    flops = environment["model_flops_per_example"]
    fitting = timings(config, history)
    sensible = [r for r in fitting if not predicted_step_time(config, r).impossible]
    if fitting and not sensible:
        raise MeasurementError(
            f"{config.label}: the steps vary too much to tell what a micro-batch of "
            f"{fitting[0].probe.micro_batch_size} costs: give a longer --timing-seconds, on a "
            "machine that does nothing else"
        )
    best = fastest_timing(config, sensible)
    if best:
        _check_ceiling(config, best, flops, environment["ceiling_flops"])
    compile_failure = next((r for r in history if r.outcome is Outcome.COMPILE_FAILED), None)
    memory_failure = next(
        (
            r
            for r in reversed(history)
            if r.outcome is Outcome.OUT_OF_MEMORY and r.probe.purpose not in OPTIONAL
        ),
        None,
    )
    done = [r for r in history if r.outcome is Outcome.OK]
    timed = [r for r in done if r.probe.purpose is Purpose.TIMING]
    saving, exchange = (
        next((r for r in history if r.probe.purpose is purpose), None)
        for purpose in (Purpose.SAVING, Purpose.COMMUNICATION)
    )
    seen = exchange.communication if exchange else ()
    if saving and saving.save_seconds and saving.checkpoint_bytes < _whole_bytes(config):
        saving = replace(
            saving, save_seconds=None, cause="fp16 overflows kept the optimizer from its first step"
        )
    return Measurement(
        outcome="measured" if best else "out of memory",
        best=_timing(config, best, flops, seen) if best else None,
        timings=tuple(_timing(config, r, flops, seen) for r in sensible),
        memory_ramp=tuple(
            (r.probe.micro_batch_size, r.peak_bytes)
            for r in done
            if r.probe.purpose is Purpose.MEMORY
        ),
        compile=_compile_state(best, sensible, history),
        compile_error=(
            f"{compile_failure.cause} (log: {compile_failure.log})" if compile_failure else ""
        ),
        out_of_memory_micro_batch_size=(
            memory_failure.probe.micro_batch_size if memory_failure else None
        ),
        out_of_memory_requested_bytes=memory_failure.requested_bytes if memory_failure else None,
        out_of_memory_free_bytes=memory_failure.free_bytes if memory_failure else None,
        out_of_memory_cause=memory_failure.cause if memory_failure else "",
        kernels=environment["kernels"],
        model_flops_per_example=flops,
        ceiling_flops=environment["ceiling_flops"],
        device_name=environment["device_name"],
        device_bytes=environment["device_bytes"],
        seconds={
            "launch": sum(end.start_wait_seconds for end in ends),
            "build": sum(r.build_seconds for r in done),
            "compile and warm-up": sum(r.warm_up_seconds for r in timed),
            "memory ramp": sum(
                r.seconds - r.build_seconds for r in done if r.probe.purpose is Purpose.MEMORY
            ),
            "communication": exchange.seconds - exchange.build_seconds if exchange else 0.0,
            "saving": saving.seconds - saving.build_seconds if saving else 0.0,
            "timing": sum(r.seconds - r.build_seconds - r.warm_up_seconds for r in timed),
            "all": wall_seconds,
        },
        sessions=len(ends),
        restart_seconds=_restart_seconds(best, timed, ends),
        save_seconds=saving.save_seconds if saving else None,
        checkpoint_bytes=saving.checkpoint_bytes if saving and saving.save_seconds else None,
        save_peak_bytes=saving.save_peak_bytes if saving and saving.save_seconds else None,
        save_error=saving.cause if saving else "",
        communication_error=exchange.cause if exchange else "",
        company=company,
    )


def _whole_bytes(config: TrainingConfig) -> int:
    """Bytes that a checkpoint with optimizer state surpasses, and one without does not."""
    return 8 * config.recipe.parameter_count


def _restart_seconds(
    best: ProbeResult | None, timed: list[ProbeResult], ends: list[SessionEnd]
) -> float | None:
    """Add up what goes by before a training's second step: launch, building, compilation."""
    if best is None:
        return None
    alike = [r for r in timed if r.probe.variant == best.probe.variant]
    begun = max(r.build_seconds + r.warm_up_seconds for r in alike)
    return max(end.start_seconds for end in ends) + begun


def _check_ceiling(
    config: TrainingConfig, best: ProbeResult, flops: int, ceiling_flops: float
) -> None:
    """Refuse what cannot be: a training whose own FLOPs outrun bare matrix products.

    On a CPU, whose cores others use too, the one may have been disturbed and the other not.
    """
    if config.hardware.gpu.is_cpu:
        return
    plan = config.plan_at(best.probe.micro_batch_size)
    seconds = predicted_step_time(config, best).seconds
    achieved = flops * plan.global_batch_size / plan.world_size / seconds
    if achieved > ceiling_flops:
        raise MeasurementError(
            f"{config.label}: {achieved / 1e12:.4g} TFLOP/s on a device whose matrix products "
            f"reach {ceiling_flops / 1e12:.4g}: a fault of measurement, which is not kept"
        )


def _compile_state(
    best: ProbeResult | None, sensible: list[ProbeResult], history: list[ProbeResult]
) -> str:
    if best and best.probe.compile:
        return "on" if best.graphs else "no graph"
    if any(r.outcome is Outcome.COMPILE_FAILED for r in history):
        return "failed"
    if not any(r.probe.compile for r in history):
        return "off"
    if best is None:
        # Out of memory: what was tried.
        return "on"
    return "slower" if any(r.probe.compile for r in sensible) else "too large"


def _timing(
    config: TrainingConfig, result: ProbeResult, flops: int, seen: Sequence[CommunicationSample]
) -> Timing:
    plan = config.plan_at(result.probe.micro_batch_size)
    step = predicted_step_time(config, result)
    longest = max(s.accumulation for s in result.samples)
    whole = [s for s in result.samples if s.accumulation == longest]
    data = sum(s.data_seconds for s in whole) / sum(s.seconds for s in whole)
    optimizer = sum(s.optimizer_seconds for s in whole) / len(whole) / step.seconds
    inputs = waiting_bytes(config, result.probe)
    return Timing(
        micro_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        global_batch_size=plan.global_batch_size,
        step_seconds=step.seconds,
        step_seconds_standard_error=step.standard_error_seconds,
        step_degrees_of_freedom=step.degrees_of_freedom,
        step_spread=step.spread,
        micro_step_seconds=step.micro_step_seconds,
        overhead_seconds=step.overhead_seconds,
        samples=tuple((s.accumulation, s.seconds) for s in result.samples),
        skipped_steps=sum(s.skipped for s in result.samples),
        peak_bytes=result.peak_bytes + inputs,
        reserved_bytes=result.reserved_bytes + inputs,
        compiled=result.probe.compile,
        compiled_graphs=result.graphs,
        mfu=mfu(config, plan, model_flops_per_example=flops, step_seconds=step.seconds),
        data_share=data,
        optimizer_share=None if config.method.sharding.backend is Backend.DEEPSPEED else optimizer,
        communication_share=_communication_share(
            config, seen, plan.gradient_accumulation_steps, step.seconds
        ),
        other_cpu_share=result.other_cpu_share,
    )


def _communication_share(
    config: TrainingConfig,
    seen: Sequence[CommunicationSample],
    accumulation: int,
    step_seconds: float,
) -> float | None:
    if config.hardware.gpu.is_cpu:
        return None
    if config.hardware.world_size == 1:
        return 0.0
    exchanging = communication_seconds(seen, accumulation)
    return exchanging / step_seconds if exchanging is not None else None
