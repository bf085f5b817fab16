import dataclasses
from pathlib import Path
from typing import Any

import pytest

from academic_pretraining.benchmarking import measure as measure_module
from academic_pretraining.benchmarking.effort import QUICK, Effort
from academic_pretraining.benchmarking.launch import SessionEnd
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.probes import (
    CommunicationSample,
    Outcome,
    Probe,
    ProbeResult,
    Purpose,
    StepSample,
)
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.errors import MeasurementError

ENVIRONMENT = {
    "kernels": "sdpa",
    "model_flops_per_example": 1000,
    "ceiling_flops": 1e9,
    "device_name": "NVIDIA H200",
    "device_bytes": 140 * 2**30,
}


def a_result(size: int = 4, outcome=Outcome.OK, purpose=Purpose.TIMING, **changes) -> ProbeResult:
    probe = {name: changes.pop(name) for name in ("compile", "high") if name in changes}
    step = changes.pop("step", 1.0)
    asked = Probe(
        **{
            "purpose": purpose,
            "micro_batch_size": size,
            "high": 2,
            "high_steps": 6,
            "compile": False,
            "deadline_seconds": 60.0,
            **probe,
        }
    )
    sample = StepSample(
        accumulation=asked.high,
        seconds=step,
        data_seconds=0.0,
        optimizer_seconds=0.0,
        skipped=False,
    )
    samples = (sample, sample) if outcome is Outcome.OK else ()
    changes = {"device_bytes": 2**40, **changes}
    return ProbeResult(probe=asked, outcome=outcome, samples=samples, **changes)


@pytest.fixture
def given() -> list[tuple[list[ProbeResult], Path]]:
    """The history and the folder that each session was given."""
    return []


@pytest.fixture
def play(monkeypatch, tiny_config, tmp_path, given, unlaunched):
    """Measure with sessions that end as a list says."""

    def run(
        *sessions: list[ProbeResult],
        last_is_finished: bool = True,
        gpu_type: str = "h200",
        workers: int = 2,
    ):
        ends = list(sessions)

        def run_session(launched, config, effort, history, *, on_ready, on_probe):
            directory = launched.directory
            given.append((list(history), directory))
            assert list(directory.iterdir()) == []
            on_ready()
            (directory / "rank0.log").write_text("what happened")
            end = SessionEnd(
                results=ends.pop(0),
                environment=ENVIRONMENT,
                start_seconds=2.0,
                start_wait_seconds=1.5,
            )
            end.finished = last_is_finished and not ends
            return end

        monkeypatch.setattr(measure_module, "run_session", run_session)
        config = tiny_config(gpu_type=gpu_type, workers=workers, global_batch_size=64)
        return measure(config, Effort(), sessions=Sessions(tmp_path / "new" / "scratch"))

    return run


def test_the_fastest_timing_is_the_best(play):
    found = play([a_result(4, step=2.0), a_result(16, step=1.0), a_result(8, step=9.0)])
    assert found.outcome == "measured"
    # 64 examples on two GPUs; samples of two micro-batches each are scaled.
    assert {t.micro_batch_size: t.step_seconds for t in found.timings} == {4: 8.0, 16: 1.0, 8: 18.0}
    assert found.best == found.timings[1]
    assert found.best.gradient_accumulation_steps == 2
    assert found.best.global_batch_size == 64
    assert found.best.samples == ((2, 1.0), (2, 1.0))
    assert (found.sessions, found.kernels, found.device_name) == (1, "sdpa", "NVIDIA H200")
    assert found.seconds["launch"] == 1.5


def test_a_session_that_ends_with_memory_is_carried_on(play, given):
    memory = a_result(8, Outcome.OUT_OF_MEMORY, requested_bytes=10, free_bytes=3)
    found = play([a_result(1, purpose=Purpose.MEMORY, peak_bytes=7), memory], [a_result(4)])
    (_, first), (history, second) = given
    assert [r.outcome for r in history] == [Outcome.OK, Outcome.OUT_OF_MEMORY]
    assert first != second
    assert found.outcome == "measured"
    assert found.memory_ramp == ((1, 7),)
    assert found.out_of_memory_micro_batch_size == 8
    assert (found.out_of_memory_requested_bytes, found.out_of_memory_free_bytes) == (10, 3)
    assert found.sessions == 2
    assert not first.exists()
    assert not second.exists()


def test_nothing_that_fits_is_a_result_too(play):
    memory = a_result(1, Outcome.OUT_OF_MEMORY, requested_bytes=10, free_bytes=3)
    found = play([memory], [memory], [])
    assert (found.outcome, found.best, found.timings) == ("out of memory", None, ())
    assert found.out_of_memory_micro_batch_size == 1
    assert found.compile == "off"


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG])
def test_a_single_fault_is_forgotten_but_its_log_stays(play, given, outcome):
    done = a_result(1, purpose=Purpose.MEMORY)
    found = play([done, a_result(4, outcome, cause="cosmic ray")], [a_result(4)])
    (_, first), (history, second) = given
    assert history == [done]
    assert found.outcome == "measured"
    assert found.sessions == 2
    assert (first / "rank0.log").read_text() == "what happened"
    assert not second.exists()


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG])
def test_a_second_fault_is_raised_with_its_cause(play, given, outcome, tmp_path):
    log = str(tmp_path / "rank1.log")
    fault = a_result(4, outcome, cause="KeyError: 'x'", log=log)
    with pytest.raises(MeasurementError) as caught:
        play([fault], [a_result(2)], [fault], last_is_finished=False)
    assert len(given) == 3
    assert str(caught.value) == (
        f"pythia-14m on 2 x h200: naive: {outcome} in timing at micro-batch 4: KeyError: 'x' "
        f"(log: {log})"
    )
    assert all((directory / "rank0.log").exists() for _, directory in given[::2])


def test_memory_of_the_host_is_no_result_and_not_tried_again(play, given):
    host = a_result(4, Outcome.HOST_OUT_OF_MEMORY, cause="pinned", transient=False, log="1.log")
    with pytest.raises(MeasurementError) as caught:
        play([host], last_is_finished=False)
    assert str(caught.value).endswith(
        ": host out of memory in timing at micro-batch 4: pinned (log: 1.log)"
    )
    assert len(given) == 1


def test_a_fault_that_would_come_again_is_raised_at_once(play, given):
    fault = a_result(4, Outcome.CRASHED, cause="KeyError: 'x'", log="rank1.log", transient=False)
    with pytest.raises(MeasurementError, match=r"KeyError: 'x' \(log: rank1\.log\)$"):
        play([fault], [a_result(4)])
    [(_, directory)] = given
    assert (directory / "rank0.log").exists()


def test_a_compilation_that_fails_is_left_out_and_said(play, given):
    failed = a_result(4, Outcome.COMPILE_FAILED, compile=True, cause="no end within 60 s")
    found = play([failed], [a_result(4)])
    (_, _), (history, _) = given
    assert [r.outcome for r in history] == [Outcome.COMPILE_FAILED]
    assert (found.compile, found.best.compiled) == ("failed", False)
    assert found.compile_error == "no end within 60 s (log: )"


def test_a_smaller_size_that_does_not_compile_leaves_the_larger_one_compiled(play):
    failed = a_result(2, Outcome.COMPILE_FAILED, compile=True, cause="no end within 60 s")
    timed = a_result(4, compile=True, graphs=3)
    found = play([timed, failed, a_result(2, step=9.0)])
    assert (found.compile, found.best.compiled) == ("on", True)
    assert [t.compiled for t in found.timings] == [True, False]


def test_a_timing_whose_real_step_would_not_fit_does_not_win(play, tiny_config):
    waiting = 6 * 4 * tiny_config().recipe.example_bytes
    fits = a_result(4, peak_bytes=1000, device_bytes=1000 + waiting)
    assert play([fits]).outcome == "measured"
    tight = a_result(4, peak_bytes=1000, device_bytes=999 + waiting)
    assert play([tight]).outcome == "out of memory"


@pytest.mark.parametrize(
    ("compiled", "graphs", "state"), [(True, 3, "on"), (True, 0, "no graph"), (False, 0, "off")]
)
def test_compilation_is_named_as_it_was(play, compiled, graphs, state):
    found = play([a_result(4, compile=compiled, graphs=graphs)])
    assert found.compile == state
    assert found.compile_error == ""
    assert found.best.compiled_graphs == graphs


def test_micro_batches_that_wait_on_the_gpu_count_in_the_peak(play, tiny_config):
    found = play([a_result(4, high=3, peak_bytes=1000, reserved_bytes=2000)])
    # Of the eight of a real step, five were not there.
    waiting = 5 * 4 * tiny_config().recipe.example_bytes
    assert waiting > 0
    assert found.best.peak_bytes == 1000 + waiting
    assert found.best.reserved_bytes == 2000 + waiting


def test_seconds_are_divided_by_phase(play):
    memory = a_result(1, purpose=Purpose.MEMORY, seconds=10.0, build_seconds=4.0)
    timing = a_result(4, seconds=30.0, build_seconds=5.0, warm_up_seconds=11.0)
    seconds = play([memory, timing]).seconds
    assert seconds.pop("all") > 0
    assert seconds == {
        "launch": 1.5,
        "build": 9.0,
        "compile and warm-up": 11.0,
        "memory ramp": 6.0,
        "communication": 0.0,
        "saving": 0.0,
        "timing": 14.0,
    }


@pytest.mark.slow
def test_a_real_measurement(tiny_config, tmp_path):
    begun = []
    config = tiny_config()
    found = measure(config, QUICK, sessions=Sessions(tmp_path / "scratch"), on_probe=begun.append)
    assert (found.outcome, found.compile, found.sessions) == ("measured", "off", 1)
    assert found.kernels == "eager"
    best = found.best
    assert best is not None
    assert found.timings == (best,)
    assert (best.micro_batch_size, best.gradient_accumulation_steps) == (1, 4)
    assert best.global_batch_size == config.recipe.global_batch_size
    assert best.step_seconds > 0
    assert [accumulation for accumulation, _ in best.samples] == [3, 1] * 3
    assert found.memory_ramp == ()
    assert [probe.purpose for probe in begun] == [Purpose.TIMING]
    assert found.seconds["all"] >= found.seconds["launch"] + found.seconds["timing"]
    assert list(Path(tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
def test_memory_that_really_runs_out_is_a_result(tiny_config, tmp_path, monkeypatch, alter):
    alter(monkeypatch, "faults.runs_out_of_memory")
    monkeypatch.setenv("FAULTY_RANKS", "1")
    found = measure(tiny_config(), QUICK, sessions=Sessions(tmp_path))
    assert (found.outcome, found.sessions) == ("out of memory", 2)
    assert found.out_of_memory_micro_batch_size == 1
    assert found.out_of_memory_requested_bytes == 2 * 2**30
    assert dataclasses.asdict(found)["best"] is None


def test_steps_that_vary_beyond_sense_are_no_result(play):
    wild = a_result(high=4, step=1.0)
    short = dataclasses.replace(wild.samples[0], accumulation=1, seconds=5.0)
    with pytest.raises(MeasurementError, match="the steps vary too much to tell what a micro-bat"):
        play([dataclasses.replace(wild, samples=(*wild.samples, short))])


def test_what_outruns_bare_matrix_products_is_refused(play):
    # 64 examples of 1,000 FLOPs in 16 steps' worth of 1e-6 s on one GPU: 4e9 FLOP/s.
    with pytest.raises(MeasurementError, match="a fault of measurement, which is not kept"):
        play([a_result(step=2e-6)])


def test_shares_of_the_step_are_those_of_its_longest_steps(play):
    result = a_result(high=4, step=2.0)
    sample = dataclasses.replace(result.samples[0], data_seconds=0.2, optimizer_seconds=0.4)
    short = dataclasses.replace(sample, accumulation=1, seconds=0.5, data_seconds=0.5)
    best = play([dataclasses.replace(result, samples=(sample, sample, short))]).best
    assert best.data_share == pytest.approx(0.1)
    assert best.optimizer_share == pytest.approx(0.4 / best.step_seconds)


def a_checkpoint(**changes) -> ProbeResult:
    figures = {
        "save_seconds": 3.0,
        "checkpoint_bytes": 10**9,
        "save_peak_bytes": 100,
        "seconds": 9.0,
    }
    return a_result(1, purpose=Purpose.SAVING, **(figures | changes))


def test_a_checkpoint_is_part_of_the_measurement(play, tmp_path):
    found = play([a_result(4, build_seconds=5.0, warm_up_seconds=11.0), a_checkpoint()])
    assert (found.save_seconds, found.checkpoint_bytes, found.save_peak_bytes) == (3.0, 10**9, 100)
    assert list((tmp_path / "new" / "scratch").iterdir()) == []
    assert found.save_error == ""
    # Launch, building and the first step.
    assert found.restart_seconds == 18.0
    assert found.seconds["saving"] == 9.0


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG, Outcome.OUT_OF_MEMORY])
def test_a_checkpoint_that_fails_costs_nothing_but_itself(play, given, outcome):
    failed = a_checkpoint(outcome=outcome, cause="disk full", save_seconds=None)
    found = play([a_result(4), failed], last_is_finished=False)
    assert len(given) == 1
    assert found.best is not None
    assert found.save_error == "disk full"
    assert (found.save_seconds, found.checkpoint_bytes) == (None, None)
    assert found.out_of_memory_micro_batch_size is None


def test_a_session_that_dies_on_its_way_to_the_checkpoint_costs_nothing_either(play, given):
    timed = [a_result(32, high=4, step=1.0), a_result(16, high=4, step=1.0)]
    dead = a_result(
        1, purpose=Purpose.MEMORY, outcome=Outcome.CRASHED, transient=False, cause="no port"
    )
    found = play([*timed, dead], [dead], last_is_finished=False)
    (_, _), (history, _) = given
    # What it was on its way to first: its next session goes on to the last one.
    assert history[-1].probe.purpose is Purpose.COMMUNICATION
    assert found.best is not None
    assert (found.communication_error, found.save_error) == ("no port", "no port")
    assert found.seconds["memory ramp"] == 0.0


def test_a_checkpoint_without_optimizer_state_is_not_taken_for_one(play):
    found = play([a_result(4), a_checkpoint(checkpoint_bytes=10**6)])
    assert found.save_seconds is None
    assert found.save_error.startswith("fp16 overflows")


def seen(accumulation: int, seconds: float, kernels: int) -> CommunicationSample:
    return CommunicationSample(accumulation=accumulation, kernels=kernels, seconds=seconds)


def an_exchange(**changes) -> ProbeResult:
    # 0.01 s a step and 0.02 s a micro-batch.
    samples = (seen(3, 0.07, 5), seen(1, 0.03, 3))
    figures: dict[str, Any] = {"communication": samples}
    return a_result(1, purpose=Purpose.COMMUNICATION, **(figures | changes))


def test_communication_is_a_share_of_each_real_step(play):
    found = play([a_result(4, step=2.0), a_result(16, step=1.0), an_exchange(seconds=9.0)])
    # Eight and two micro-batches, in 8 s and 1 s.
    shares = {t.micro_batch_size: t.communication_share for t in found.timings}
    assert shares == {4: pytest.approx(0.17 / 8), 16: pytest.approx(0.05)}
    assert found.best.communication_share == shares[16]
    assert found.seconds["communication"] == 9.0


@pytest.mark.parametrize(
    ("where", "share"), [({"workers": 1}, 0.0), ({"gpu_type": "cpu"}, None), ({}, None)]
)
def test_communication_that_nobody_looked_at(play, where, share):
    assert play([a_result(4)], **where).best.communication_share == share


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG, Outcome.OUT_OF_MEMORY])
def test_communication_that_cannot_be_seen_costs_neither_timing_nor_checkpoint(
    play, given, outcome
):
    failed = an_exchange(outcome=outcome, communication=(), cause="no CUPTI", transient=False)
    found = play([a_result(4), failed], [a_checkpoint()])
    (_, first), (history, _) = given
    assert [r.probe.purpose for r in history] == [Purpose.TIMING, Purpose.COMMUNICATION]
    assert (first / "rank0.log").exists()
    assert found.best.communication_share is None
    assert found.communication_error == "no CUPTI"
    assert found.save_seconds == 3.0
    assert found.out_of_memory_micro_batch_size is None
