import dataclasses

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated import (
    DEVICES,
    GIB,
    NORMAL,
    ONCE,
    Device,
    best_size,
    config_on,
    search,
    sizes,
    story,
    timed,
)

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.prediction import best_timing, timings, waiting_bytes
from academic_pretraining.benchmarking.prediction import predicted_step_seconds as predicted_seconds
from academic_pretraining.benchmarking.probes import Outcome, ProbeResult, Purpose
from academic_pretraining.benchmarking.search import next_probe


@settings(max_examples=200)
@given(device=DEVICES, gpus=st.sampled_from([1, 2, 3, 6, 8]), most=st.integers(1, 6))
@example(
    # Compiled, 32 does not fit with its inputs; 8 does not compile, and 32 fits without.
    device=Device(
        memory=44014643454,
        static=11256594591,
        per_example=832996934,
        compiled_share=1.1875,
        overhead_seconds=1.0,
        per_example_seconds=1.0,
        launch_seconds=0.0,
        compile_fails_at=(1, 2, 4, 8),
    ),
    gpus=1,
    most=2,
)
@example(
    # 128 examples fit, but not with the inputs of a real step, which need 256 bytes more.
    device=Device(memory=8 * GIB, static=0, per_example=22314982, compiled_share=3),
    gpus=1,
    most=1,
)
def test_every_search_ends_with_the_fastest_of_what_it_timed(device, gpus, most):
    config = config_on(gpus=gpus, batch_tolerance=0.01)
    history = search(config, device, dataclasses.replace(NORMAL, most_timings=most))
    fitted = timed(history)
    # One that fits in short steps alone does not count.
    assert len(timings(config, history)) <= most
    # After a failed compilation one that fits in short steps alone may be timed without.
    uncompiled = {r.probe.micro_batch_size for r in timings(config, history) if not r.probe.compile}
    assert len(fitted) - len(set(fitted)) <= len(uncompiled)
    best = best_timing(config, history)
    outcomes = [r.outcome for r in history]
    failed = outcomes.index(Outcome.COMPILE_FAILED) if Outcome.COMPILE_FAILED in outcomes else 999
    if best is None:
        smallest = history[-1].probe
        assert smallest.micro_batch_size == config.plans()[0].micro_batch_size
        inputs = waiting_bytes(config, smallest)
        held = device.held(smallest)
        assert held + inputs > device.memory - GIB
        assert device.peak(smallest) + inputs > 0.94 * device.memory or held > device.memory
        return

    def truth(size: int) -> float:
        accumulation = config.plan_at(size).gradient_accumulation_steps
        return device.overhead_seconds + accumulation * device.micro_step_seconds(size)

    predicted = predicted_seconds(config, best)
    assert predicted == pytest.approx(truth(best.probe.micro_batch_size))
    training = [result.probe.micro_batch_size for result in timings(config, history)]
    assert set(training) <= set(fitted)
    assert predicted == pytest.approx(min(truth(size) for size in training))
    assert not any(r.probe.compile for r in history[failed + 1 :])


def test_a_gpu_that_gains_with_size_is_filled():
    config = config_on()
    # 94% of 80 GiB hold 71 examples, and 64 is the largest size that divides.
    history = search(config, Device(compiled_share=1.0))
    assert sizes(history, Purpose.MEMORY, Outcome.OK) == [1, 4, 32]
    assert timed(history)[0] == 64
    assert best_size(config, history) == 64
    assert Outcome.OUT_OF_MEMORY not in [r.outcome for r in history]


def test_memory_is_probed_eagerly_and_with_gradients_alive():
    history = search(config_on(), Device())
    memory = [r.probe for r in history if r.probe.purpose is Purpose.MEMORY]
    assert memory
    assert all(not p.compile and p.high == 2 for p in memory)
    assert all(r.probe.compile for r in history if r.probe.purpose is Purpose.TIMING)


@pytest.mark.parametrize(
    ("failing", "compiled_share", "size", "later"),
    [
        # Compiled, the smallest size fits after all, and what it takes says which others do.
        (0, 1.0, 1, [1, 8, 64]),
        (1, 1.0, 4, [2, 2, 1]),
        (2, 1.0, 32, [8, 16, 16, 8]),
        # It takes half of what ran out.
        (2, 0.5, 32, [8, 16, 16, 128]),
        (3, 1.0, 64, [32, 16]),
        (4, 0.5, 128, [32]),
        (4, 1.0, 32, [16]),
    ],
)
def test_out_of_memory_at_any_probe_leads_on(failing, compiled_share, size, later):
    config, device = config_on(), Device(compiled_share=compiled_share)
    history: list[ProbeResult] = []
    while probe := next_probe(config, NORMAL, history):
        assert len(history) < 30
        failed = ProbeResult(probe=probe, outcome=Outcome.OUT_OF_MEMORY)
        history.append(failed if len(history) == failing else device.run(probe))
    assert history[failing].probe.micro_batch_size == size
    assert [r.probe.micro_batch_size for r in history[failing + 1 :]] == later
    assert best_timing(config, history) is not None


def test_nothing_fits():
    config = config_on()
    history = search(config, Device(static=100 * GIB))
    assert {r.outcome for r in history} == {Outcome.OUT_OF_MEMORY}
    assert {r.probe.micro_batch_size for r in history} == {1}
    assert best_timing(config, history) is None


def test_a_single_plan_needs_no_memory_ramp():
    config = config_on(gpus=1024)
    history = search(config, Device())
    assert [r.probe.purpose for r in history] == [Purpose.TIMING]
    assert timed(history) == [1]


def test_a_cpu_is_timed_without_a_memory_ramp():
    config = config_on("cpu", 2)
    history = search(config, Device(), QUICK)
    assert [r.probe.purpose for r in history] == [Purpose.TIMING]
    assert timed(history) == [1]


@pytest.mark.parametrize("wish", [1.0, 4.0])
def test_a_run_of_an_unknown_speed_ends_when_it_was_long_enough(wish):
    effort = dataclasses.replace(QUICK, timing_seconds=wish)
    [result] = search(config_on("cpu", 2), Device(), effort)
    assert (result.probe.epochs, result.probe.enough_seconds) == (QUICK.epochs, wish)
    # Whatever it lasts, the first epoch holds three long steps and a short one to fit.
    assert result.probe.high_steps - QUICK.warm_up_steps == 3
    assert result.probe.low


def test_only_the_wanted_sizes_are_considered():
    history = search(
        config_on(), Device(), dataclasses.replace(NORMAL, micro_batch_sizes=(2, 8, 7))
    )
    assert {r.probe.micro_batch_size for r in history} == {2, 8}


@given(
    per_example=st.floats(1e-6, 10), gpus=st.sampled_from([1, 2, 8, 1024]), wish=st.floats(1, 60)
)
def test_timing_runs_hold_real_steps_or_two_lengths_to_extrapolate_from(per_example, gpus, wish):
    config = config_on(gpus=gpus)
    device = Device(per_example_seconds=per_example, launch_seconds=0.0)
    for result in search(config, device, dataclasses.replace(NORMAL, timing_seconds=wish)):
        probe = result.probe
        if probe.purpose is Purpose.MEMORY or result.outcome is not Outcome.OK:
            continue
        real = config.plan_at(probe.micro_batch_size).gradient_accumulation_steps
        lengths = {s.accumulation for s in result.samples}
        assert probe.high in lengths
        assert probe.high <= real
        timed = [s.seconds for s in result.samples if s.accumulation == probe.high]
        # All but the guess of it is exact.
        assert len(timed) >= (4 if max(timed) < 2.9 else 3)
        assert lengths == ({real} if not probe.low else {probe.low, probe.high})


@pytest.mark.parametrize(
    ("per_example_seconds", "high", "steps", "warm_up_steps"),
    # At 64 examples: 2 s a step of 3 (and 5 s a real one), and 38 s.
    [(0.01, 3, 7, 3), (0.2, 3, 5, 2)],
)
def test_steps_of_seconds_are_timed_earlier(per_example_seconds, high, steps, warm_up_steps):
    history = search(config_on(), Device(per_example_seconds=per_example_seconds), NORMAL)
    first = next(r.probe for r in history if r.probe.purpose is Purpose.TIMING)
    assert (first.micro_batch_size, first.high) == (64, high)
    assert (first.high_steps, first.warm_up_steps) == (steps, warm_up_steps)


@pytest.mark.parametrize(
    ("device", "effort", "saved"),
    [
        (Device(), ONCE, [1]),
        (Device(), NORMAL, []),
        (Device(), dataclasses.replace(ONCE, largest_checkpoint_bytes=1e9), []),
        # What does not fit is not saved.
        (Device(static=100 * GIB), ONCE, []),
    ],
)
def test_one_checkpoint_is_written_in_the_end(device, effort, saved):
    history = search(config_on(), device, effort)
    assert sizes(history, Purpose.SAVING, Outcome.OK) == saved
    assert not saved or history[-1].probe.purpose is Purpose.SAVING
    assert not any(r.probe.compile for r in history if r.probe.purpose is Purpose.SAVING)


@pytest.mark.parametrize(
    ("gpu_type", "gpus", "device", "effort", "last"),
    [
        ("a100", 2, Device(), ONCE, [Purpose.COMMUNICATION, Purpose.SAVING]),
        ("a100", 2, Device(), dataclasses.replace(ONCE, saves=False), [Purpose.COMMUNICATION]),
        ("a100", 2, Device(), dataclasses.replace(ONCE, profiles=False), [Purpose.SAVING]),
        # Nobody to talk to, and no GPU to look at.
        ("a100", 1, Device(), ONCE, [Purpose.SAVING]),
        ("cpu", 2, Device(), ONCE, [Purpose.SAVING]),
        # What does not fit is not looked at.
        ("a100", 2, Device(static=100 * GIB), ONCE, []),
    ],
)
def test_communication_is_looked_at_between_timing_and_saving(gpu_type, gpus, device, effort, last):
    purposes = [r.probe.purpose for r in search(config_on(gpu_type, gpus), device, effort)]
    needed = [p for p in purposes if p in (Purpose.MEMORY, Purpose.TIMING)]
    assert purposes == needed + last


def test_communication_is_looked_at_eagerly_in_steps_of_two_lengths():
    [probe] = [
        r.probe
        for r in search(config_on(), Device(), dataclasses.replace(ONCE, saves=False))
        if r.probe.purpose is Purpose.COMMUNICATION
    ]
    assert (probe.micro_batch_size, probe.high, probe.low, probe.compile) == (1, 3, 1, False)
    assert probe.optimizer_steps > probe.warm_up_steps + 3


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG, Outcome.OUT_OF_MEMORY])
def test_communication_that_was_not_seen_is_not_looked_at_again(outcome):
    history = search(config_on(), Device(), dataclasses.replace(ONCE, saves=False))
    failed = dataclasses.replace(history[-1], outcome=outcome, samples=())
    assert failed.probe.purpose is Purpose.COMMUNICATION
    probe = next_probe(config_on(), ONCE, [*history[:-1], failed])
    assert probe is not None
    assert probe.purpose is Purpose.SAVING


def test_communication_that_runs_out_of_memory_opens_no_size():
    config, history = config_on(), []
    while probe := next_probe(config, ONCE, history):
        # 32 examples run out without compilation, which takes as much, and so are not compiled.
        fails = (Purpose.MEMORY, 32), (Purpose.COMMUNICATION, 1)
        failed = (probe.purpose, probe.micro_batch_size) in fails
        out = ProbeResult(probe=probe, outcome=Outcome.OUT_OF_MEMORY)
        history.append(out if failed else Device(compiled_share=1.0).run(probe))
    assert story(history) == "m1 m4 m32! m8 m16 c16 c8 c1! s1"
