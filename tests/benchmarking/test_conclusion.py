import dataclasses
import math

import pytest
from playing import a_checkpoint, a_result, an_exchange

from academic_pretraining.benchmarking.notes import Notes
from academic_pretraining.benchmarking.probes import Outcome, Purpose
from academic_pretraining.errors import MeasurementError


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


def test_nothing_that_fits_is_a_result_too(play):
    cause = "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED"
    memory = a_result(1, Outcome.OUT_OF_MEMORY, requested_bytes=10, free_bytes=3, cause=cause)
    found = play([memory], [memory], [])
    assert found.out_of_memory_cause == cause
    assert (found.outcome, found.best, found.timings) == ("out of memory", None, ())
    assert found.out_of_memory_micro_batch_size == 1
    assert found.compile == "off"


def test_a_smaller_size_that_does_not_compile_leaves_the_larger_one_compiled(play):
    failed = a_result(2, Outcome.COMPILE_FAILED, compile=True, cause="no end within 60 s")
    timed = a_result(4, compile=True, graphs=3)
    found = play([timed, failed, a_result(2, step=9.0)])
    assert (found.compile, found.best.compiled) == ("on", True)
    assert [t.compiled for t in found.timings] == [True, False]


def test_a_timing_whose_real_step_would_not_fit_does_not_win(play, tiny_config):
    waiting = 6 * 4 * tiny_config().recipe.example_bytes
    device = (1000 + waiting) / 0.94
    fits = a_result(4, peak_bytes=1000, device_bytes=math.ceil(device))
    assert play([fits]).outcome == "measured"
    tight = a_result(4, peak_bytes=1000, device_bytes=math.ceil(device) - 2)
    assert play([tight]).outcome == "out of memory"


@pytest.mark.parametrize(
    ("compiled", "graphs", "state"), [(True, 3, "on"), (True, 0, "no graph"), (False, 0, "off")]
)
def test_compilation_is_named_as_it_was(play, compiled, graphs, state):
    found = play([a_result(4, compile=compiled, graphs=graphs)])
    assert found.compile == state
    assert found.compile_error == ""
    assert found.best.compiled_graphs == graphs


@pytest.mark.parametrize(("eager", "state"), [(1.0, "slower"), (3.0, "on")])
def test_compilation_that_was_slower_is_named_so(play, eager, state):
    compiled = a_result(4, compile=True, graphs=3, step=2.0, warm_up_seconds=90.0)
    found = play([a_result(4, step=eager, warm_up_seconds=5.0), compiled])
    assert (found.compile, found.best.compiled) == (state, state == "on")
    assert [t.compiled for t in found.timings] == [False, True]
    assert found.restart_seconds < 90 if state == "slower" else found.restart_seconds > 90


def test_compilation_that_does_not_fit_is_named_so(play):
    found = play([a_result(4)], [a_result(4, Outcome.OUT_OF_MEMORY, compile=True)], [])
    assert (found.compile, found.best.compiled) == ("too large", False)


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


def test_steps_that_vary_beyond_sense_are_no_result(play):
    wild = a_result(high=4, step=1.0)
    short = dataclasses.replace(wild.samples[0], accumulation=1, seconds=5.0)
    with pytest.raises(MeasurementError, match="the steps vary too much to tell what a micro-bat"):
        play([dataclasses.replace(wild, samples=(*wild.samples, short))])


def test_a_size_whose_steps_make_no_sense_costs_no_other_one(play):
    wild = a_result(2, high=4, step=1.0)
    short = dataclasses.replace(wild.samples[0], accumulation=1, seconds=5.0)
    wild = dataclasses.replace(wild, samples=(*wild.samples, short))
    found = play([a_result(4, step=30.0), wild])
    assert [t.micro_batch_size for t in found.timings] == [4]
    assert found.best == found.timings[0]


def test_what_outruns_bare_matrix_products_is_refused(play):
    # 64 examples of 1,000 FLOPs in 16 steps' worth of 1e-6 s on one GPU: 4e9 FLOP/s.
    with pytest.raises(MeasurementError, match="a fault of measurement, which is not kept"):
        play([a_result(step=2e-6)])


def test_each_of_two_gpus_does_half_of_a_step(play):
    # Both together outrun one.
    assert play([a_result(step=12e-6)]).outcome == "measured"
    with pytest.raises(MeasurementError, match=r"0\.001143 TFLOP"):
        play([a_result(step=7e-6)])


def test_on_a_cpu_others_may_have_slowed_the_products(play):
    assert play([a_result(step=2e-6)], gpu_type="cpu").outcome == "measured"


@pytest.mark.parametrize("step", [2e-6, 1.0])
def test_what_makes_no_sense_is_not_recalled(play, tmp_path, step):
    path = tmp_path / "notes.jsonl"
    notes = Notes(path, {})
    result = a_result(high=4, step=step)
    short = dataclasses.replace(result.samples[0], accumulation=1, seconds=5 * step)
    samples = (*result.samples, short) if step == 1.0 else result.samples
    with pytest.raises(MeasurementError):
        play([dataclasses.replace(result, samples=samples)], notes=notes)
    assert not path.exists()


def test_shares_of_the_step_are_those_of_its_longest_steps(play):
    result = a_result(high=4, step=2.0)
    sample = dataclasses.replace(result.samples[0], data_seconds=0.2, optimizer_seconds=0.4)
    short = dataclasses.replace(sample, accumulation=1, seconds=0.5, data_seconds=0.5)
    best = play([dataclasses.replace(result, samples=(sample, sample, short))]).best
    assert best.data_share == pytest.approx(0.1)
    assert best.optimizer_share == pytest.approx(0.4 / best.step_seconds)


def test_a_checkpoint_is_part_of_the_measurement(play, tmp_path):
    found = play([a_result(4, build_seconds=5.0, warm_up_seconds=11.0), a_checkpoint()])
    assert (found.save_seconds, found.checkpoint_bytes, found.save_peak_bytes) == (3.0, 10**9, 100)
    assert list((tmp_path / "new" / "scratch").iterdir()) == []
    assert found.save_error == ""
    # Launch, building and the first step.
    assert found.restart_seconds == 18.0
    assert found.seconds["saving"] == 9.0


def test_a_checkpoint_without_optimizer_state_is_not_taken_for_one(play):
    found = play([a_result(4), a_checkpoint(checkpoint_bytes=10**6)])
    assert found.save_seconds is None
    assert found.save_error.startswith("fp16 overflows")


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
