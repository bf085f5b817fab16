"""A configuration's measurement: sessions until the search is over."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from academic_pretraining.benchmarking.conclusion import conclude
from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.launch import SessionEnd, run_session
from academic_pretraining.benchmarking.notes import Notes
from academic_pretraining.benchmarking.post_mortem import NO_PROBE
from academic_pretraining.benchmarking.prediction import best_timing
from academic_pretraining.benchmarking.probes import Outcome, Probe, ProbeResult, Purpose
from academic_pretraining.benchmarking.scratch import keep
from academic_pretraining.benchmarking.search import next_probe
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import DeviceBusyError, MeasurementError
from academic_pretraining.occupancy import Company, is_much
from academic_pretraining.records import Measurement

_NO_RESULT = (Outcome.CRASHED, Outcome.HUNG, Outcome.HOST_OUT_OF_MEMORY)


def measure(
    config: TrainingConfig,
    effort: Effort,
    *,
    sessions: Sessions,
    on_probe: Callable[[Probe], None] = lambda probe: None,
    notes: Notes | None = None,
) -> Measurement:
    """Measure the fastest micro-batch of a configuration.

    Args:
        config: what to measure.
        effort: how thoroughly.
        sessions: where it runs; the devices are its own from the first session's request on.
        on_probe: called when a probe begins.
        notes: where probes are kept until all are done, and taken up again.

    Raises:
        MeasurementError: a session crashed or hung, and once more where that may help (out of
            memory in a probe is a result); or as `conclude`.
        HardwareMismatchError: the machine is not what was declared.
        DeviceBusyError: others compute on its GPUs, or came to them meanwhile without being
            allowed; then its probes are forgotten, too.
    """
    with ExitStack() as devices:
        return _measure(config, effort, sessions, on_probe, notes, devices)


def _measure(
    config: TrainingConfig,
    effort: Effort,
    sessions: Sessions,
    on_probe: Callable[[Probe], None],
    notes: Notes | None,
    devices: ExitStack,
) -> Measurement:
    began = time.monotonic()
    history = notes.recall() if notes else []
    earlier_seconds = sum(result.seconds for result in history)
    ends: list[SessionEnd] = []
    crashes = 0
    company: Company | None = None
    waited_seconds = 0.0

    def note(results: list[ProbeResult]) -> None:
        if notes:
            notes.add(results)

    def take_devices() -> None:
        nonlocal company, waited_seconds
        if company is None:
            waits = time.monotonic()
            company = devices.enter_context(sessions.alone())
            waited_seconds = time.monotonic() - waits
            if notes:
                notes.company = notes.company or company.first
                devices.push(_forget_if_disturbed(notes, company))
        # Another setting, or another session of this one. What is offloaded is computed by the
        # host, and would be timed while they load libraries.
        if not config.method.offloading:
            sessions.launch_ahead(config.hardware)

    def begin(probe: Probe) -> None:
        # All steps are timed by then. Loading goes on while the checkpoint is written, one core a
        # rank; it does not begin with it, so that on one GPU nothing disturbs that.
        if probe.purpose is Purpose.COMMUNICATION:
            sessions.launch_ahead(config.hardware)
        on_probe(probe)

    while not (ends and ends[-1].finished):
        with sessions.open(config.hardware) as launched:
            directory = launched.directory
            end = run_session(
                launched,
                config,
                effort,
                history,
                on_ready=take_devices,
                on_probe=begin,
                on_result=lambda result: note([result]),
            )
            ends.append(end)
            last = end.results[-1] if end.results else None
            begun = not last or last.probe != NO_PROBE
            if last and not begun:
                # It died on its way to a probe, which has to answer for it.
                pending = next_probe(config, effort, [*history, *end.results[:-1]])
                last = end.results[-1] = replace(last, probe=pending or NO_PROBE)
            if last and company and _is_of_others(last, config, company):
                keep(directory)
                raise _disturbed(
                    config,
                    f"they held {(last.others_bytes or 0) / 2**30:.1f} GiB when "
                    f"{last.probe.description} ran {last.outcome}: {last.cause} (log: {last.log})",
                )
            told = any(end.environment for end in ends)
            if last and last.probe.purpose is Purpose.SAVING and told:
                # The last probe, and one that takes nothing from the others. Where those are from a
                # process that was killed, a session has to live long enough to tell of its device.
                end.finished = True
                if last.outcome is not Outcome.OK:
                    keep(directory)
            elif last and last.probe.purpose is Purpose.COMMUNICATION:
                # A failed one stays in the history, so that the next session goes on to the last.
                if last.outcome is not Outcome.OK:
                    keep(directory)
            elif last and last.outcome is Outcome.COMPILE_FAILED:
                keep(directory)
            elif last and (
                last.outcome in _NO_RESULT or (last.outcome is Outcome.OUT_OF_MEMORY and not begun)
            ):
                # Memory that somebody else had taken is no result either.
                keep(directory)
                crashes += 1
                given_up = crashes == 2 or not last.transient
                if given_up and _can_do_without(last, config, history, end):
                    end.results[-1] = replace(last, outcome=Outcome.COMPILE_FAILED)
                    crashes = 0
                elif given_up:
                    raise MeasurementError(
                        f"{config.label}: {last.outcome} {'in' if begun else 'before'} "
                        f"{last.probe.description}: {last.cause} (log: {last.log})"
                    )
                else:
                    end.results.pop()
        history += end.results
        note(end.results)
    wall_seconds = time.monotonic() - began - waited_seconds + earlier_seconds
    others = notes.company if notes else ""
    if company:
        others = others or company.first or company.now()
        if others and not company.allowed:
            raise _disturbed(config, others)
    try:
        return conclude(config, history, ends, wall_seconds=wall_seconds, company=others)
    except MeasurementError:
        # What makes no sense would make none the next time either.
        if notes:
            notes.forget()
        raise


def _can_do_without(
    failed: ProbeResult, config: TrainingConfig, history: list[ProbeResult], end: SessionEnd
) -> bool:
    """Whether only compilation is lost with a probe: without it there is a result already."""
    eager = [r for r in [*history, *end.results] if not r.probe.compile]
    return failed.probe.compile and best_timing(config, eager) is not None


def _disturbed(config: TrainingConfig, others: str) -> DeviceBusyError:
    return DeviceBusyError(
        f"{config.label}: others came to its GPUs meanwhile: {others}; its figures are not kept: "
        "run the same command when they are gone, or give --allow-busy-gpus"
    )


def _forget_if_disturbed(notes: Notes, company: Company) -> Callable[..., None]:
    """Let go of what was noted beside others, whatever ended the measurement but a kill."""

    def leave(kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or company.allowed:
            return
        if isinstance(error, DeviceBusyError) or company.now():
            notes.forget()

    return leave


def _is_of_others(result: ProbeResult, config: TrainingConfig, company: Company) -> bool:
    """Whether a probe lacked memory that others had, who are not allowed there."""
    if result.outcome is not Outcome.OUT_OF_MEMORY or company.allowed:
        return False
    total_bytes = (config.hardware.gpu.memory_gib or 0.0) * 2**30
    return is_much(result.others_bytes or 0, total_bytes)
