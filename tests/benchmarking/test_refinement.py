"""The end of a search: longer runs where the real step is uncertain, and runs taken together."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playing import timed_accumulations

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.prediction import (
    best_timing,
    predicted_step_seconds,
    predicted_step_time,
    timings,
)
from academic_pretraining.benchmarking.probes import (
    Outcome,
    Probe,
    ProbeResult,
    Purpose,
    StepSample,
)
from academic_pretraining.benchmarking.search import next_probe
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import get_model

GIB = 2**30
NOISY, QUIET = 0.05, 0.0001
PATIENT = Effort(
    timing_seconds=20.0,
    saves=False,
    high_steps=3,
    epochs=3,
    warm_up_steps=2,
    relative_half_width=0.007,
    most_refinements=2,
)
AT_8 = dataclasses.replace(PATIENT, micro_batch_sizes=(8,))


def config_on(gpu_type: str = "cpu", gpus: int = 2, *, free_lunch: bool = False) -> TrainingConfig:
    """Train pythia-160m; on a CPU, so that no memory is probed."""
    return TrainingConfig(
        hardware=Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type=gpu_type),
        recipe=get_model("pythia-160m"),
        method=Method(free_lunch=free_lunch),
    )


def truth(accumulation: int, size: int, slow_from: int) -> float:
    return 0.05 + accumulation * (0.02 + 0.01 * size * (1 + (size >= slow_from)))


def answer(probe: Probe, noise: float, slow_from: int = 1000) -> ProbeResult:
    """Run a probe as the Trainer does, every other step too slow and the rest too fast."""
    size = probe.micro_batch_size
    samples = tuple(
        StepSample(
            accumulation=n,
            seconds=truth(n, size, slow_from) * (1 + noise * (-1) ** i),
            data_seconds=0.0,
            optimizer_seconds=0.0,
            skipped=False,
        )
        for i, n in enumerate(timed_accumulations(probe))
    )
    return ProbeResult(
        probe=probe,
        outcome=Outcome.OK,
        samples=samples,
        peak_bytes=(4 + size) * GIB,
        device_bytes=80 * GIB,
    )


def search(
    config: TrainingConfig, effort: Effort, noise: float, slow_from: int = 1000
) -> list[ProbeResult]:
    history: list[ProbeResult] = []
    while probe := next_probe(config, effort, history):
        assert len(history) < 20
        history.append(answer(probe, noise, slow_from))
    return [r for r in history if r.probe.purpose is Purpose.TIMING]


def lengths(history: list[ProbeResult]) -> list[tuple[int, int]]:
    return [(r.probe.low, r.probe.high) for r in history]


def test_noisy_steps_lead_to_longer_ones_up_to_the_real_one():
    # 64 is the real accumulation, after which nothing is left to extrapolate.
    history = search(config_on(), dataclasses.replace(AT_8, most_refinements=9), NOISY)
    assert lengths(history) == [(1, 4), (4, 16), (16, 64)]
    first, *rest = (r.probe for r in history)
    for probe in rest:
        # The deadline grows with the steps.
        assert probe.deadline_seconds > first.deadline_seconds
        shape = {"low": first.low, "high": first.high, "deadline_seconds": first.deadline_seconds}
        assert dataclasses.replace(probe, **shape) == first


def test_quiet_steps_lead_to_none_on_one_gpu():
    # Of 128 micro-batches.
    assert lengths(search(config_on(gpus=1), AT_8, QUIET)) == [(1, 4)]


@pytest.mark.parametrize(
    ("gpus", "offloading", "micro_batch_size", "runs"),
    [
        (2, False, 8, [(1, 4), (4, 16)]),
        (1, True, 8, [(1, 4), (4, 16)]),
        # 16 real ones are four times 4.
        (8, False, 8, [(1, 4), (4, 16)]),
        (8, False, 4, [(1, 4), (4, 16)]),
    ],
)
def test_a_step_of_several_gpus_or_of_the_host_is_confirmed_once(
    gpus, offloading, micro_batch_size, runs
):
    effort = dataclasses.replace(AT_8, micro_batch_sizes=(micro_batch_size,))
    config = config_on("h100", gpus=gpus)
    if offloading:
        method = Method(sharding=Sharding.ZERO_2, offloading=True)
        config = dataclasses.replace(config, method=method)
    assert lengths(search(config, effort, QUIET)) == runs
    assert lengths(search(config, dataclasses.replace(effort, most_refinements=0), QUIET)) == [
        runs[0]
    ]


@pytest.mark.parametrize(
    ("wish", "runs"),
    [
        *((25.0, [(1, 5), (5, 20)]), (30.0, [(2, 6), (6, 32)]), (40.0, [(2, 8), (8, 32)])),
        (160.0, [(0, 32)]),
    ],
)
def test_a_run_is_as_long_as_the_real_step_where_that_is_little_longer(wish, runs):
    # 32 micro-batches: 1.6 times 20, 1.33 times 24, and 32; or at once.
    effort = dataclasses.replace(AT_8, timing_seconds=wish)
    assert lengths(search(config_on("h100", gpus=4), effort, QUIET)) == runs


def test_what_a_longer_run_shows_makes_no_smaller_size_worth_timing():
    # By steps of three micro-batches 16 examples gain 3.6% on 32; by long ones, in which all but
    # the first four cost less, 5.5%.
    shape = {"timing_seconds": 4.0, "high_steps": 7, "epochs": 1, "warm_up_steps": 3}
    effort = dataclasses.replace(PATIENT, micro_batch_sizes=(8, 16, 32), **shape)
    config = config_on("h100")
    per_example = {8: 0.012, 16: 0.01, 32: 0.010373}
    history: list[ProbeResult] = []
    while probe := next_probe(config, effort, history):
        micro_batch = probe.micro_batch_size * per_example[probe.micro_batch_size]
        result = answer(probe, QUIET)
        samples = tuple(
            dataclasses.replace(
                s, seconds=micro_batch * (s.accumulation + 0.05 * min(4, s.accumulation))
            )
            for s in result.samples
        )
        history.append(dataclasses.replace(result, samples=samples))
    timed = [r.probe for r in history if r.probe.purpose is Purpose.TIMING]
    assert [(p.micro_batch_size, p.high) for p in timed] == [(32, 3), (16, 3), (16, 12)]
    at_32, at_16 = (predicted_step_seconds(config, r) for r in timings(config, history))
    assert 1 - at_16 / at_32 > 0.05


@pytest.mark.parametrize(
    # Of 24 micro-batches 2.5 s, and of the real 32 5.8 s.
    ("size", "high", "steps", "warm_up_steps"),
    [(8, 24, 6, 3), (16, 32, 5, 2)],
)
def test_longer_runs_are_shorter_in_steps(size, high, steps, warm_up_steps):
    shape = {"high_steps": 7, "epochs": 1, "warm_up_steps": 3, "micro_batch_sizes": (size,)}
    first, second = search(config_on(), dataclasses.replace(PATIENT, **shape), QUIET)
    assert (first.probe.high, second.probe.high) == (6, high)
    assert (first.probe.high_steps, second.probe.high_steps) == (7, steps)
    assert (first.probe.warm_up_steps, second.probe.warm_up_steps) == (3, warm_up_steps)
    assert len(first.samples) == 5
    assert len(second.samples) == 4


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, 9])
def test_there_are_never_more_than_asked_for(most):
    effort = dataclasses.replace(PATIENT, micro_batch_sizes=(1,), most_refinements=most)
    runs = [(1, 4), (4, 16), (16, 64), (64, 256), (256, 512)]
    assert lengths(search(config_on(), effort, NOISY)) == runs[: 1 + most]


@given(
    noise=st.floats(0, 0.3),
    most=st.integers(0, 4),
    size=st.sampled_from([1, 4, 32, 256, 512]),
    wanted=st.floats(1e-4, 0.1),
)
def test_every_refinement_has_a_reason(noise, most, size, wanted):
    config = config_on()
    effort = dataclasses.replace(
        PATIENT, micro_batch_sizes=(size,), most_refinements=most, relative_half_width=wanted
    )
    history = search(config, effort, noise)
    real = config.plan_at(size).gradient_accumulation_steps
    assert len(history) <= 1 + most
    for before, after in itertools.pairwise(history):
        assert before.probe.high < real
        assert after.probe.low == before.probe.high
        longer = 4 * before.probe.high
        assert after.probe.high == (real if real <= 1.5 * longer else longer)
    extrapolates = real > history[0].probe.high
    if noise == 0 or not extrapolates:
        assert len(history) == (2 if extrapolates and most else 1)
    assert not (extrapolates and most) or len(history) > 1


def test_the_prediction_gets_better():
    config = config_on()
    real = truth(64, 8, 1000)
    errors = []
    for most in (0, 2):
        history = search(config, dataclasses.replace(AT_8, most_refinements=most), NOISY)
        best = best_timing(config, history)
        assert best is not None
        errors.append(abs(predicted_step_seconds(config, best) / real - 1))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(("most", "runs"), [(0, 2), (1, 2), (2, 3)])
def test_steps_that_make_no_sense_are_run_again_in_any_case(most, runs):
    effort = dataclasses.replace(AT_8, most_refinements=most)
    history: list[ProbeResult] = []
    while probe := next_probe(config_on(), effort, history):
        result = answer(probe, QUIET)
        # Long steps are faster than short ones.
        samples = tuple(dataclasses.replace(s, seconds=1 / s.accumulation) for s in result.samples)
        history.append(dataclasses.replace(result, samples=samples))
    assert lengths(history) == [(1, 4), (4, 16), (16, 64)][:runs]
    assert all(a.probe.deadline_seconds > effort.timing_deadline_seconds for a in history[1:])


def test_another_size_that_makes_no_sense_is_run_again_too():
    effort = dataclasses.replace(PATIENT, micro_batch_sizes=(8, 16), most_refinements=0)
    history: list[ProbeResult] = []
    while probe := next_probe(config_on("a100"), effort, history):
        result = answer(probe, QUIET)
        if probe.micro_batch_size == 8:
            # A step of 20 s, whatever its length: slower than those of 16.
            samples = tuple(
                dataclasses.replace(s, seconds=20 - s.accumulation / 1000) for s in result.samples
            )
            result = dataclasses.replace(result, samples=samples)
        history.append(result)
    timed = [r.probe for r in history if r.probe.purpose is Purpose.TIMING]
    assert [p.micro_batch_size for p in timed] == [16, 8, 8]
    assert timed[2].low == timed[1].high
    assert timed[2].enough_seconds == effort.timing_seconds


@pytest.mark.parametrize(("slow_from", "best"), [(1000, 16), (16, 8)])
def test_only_the_best_size_is_refined(slow_from, best):
    effort = dataclasses.replace(PATIENT, micro_batch_sizes=(8, 16))
    history = search(config_on("a100"), effort, NOISY, slow_from)
    sizes = [r.probe.micro_batch_size for r in history]
    assert sizes[:2] == [16, 8]
    assert set(sizes[2:]) == {best}
    assert history[2].probe.high > max(r.probe.high for r in history[:2])


def test_the_real_accumulation_is_not_run_again():
    # Whole steps of 2 micro-batches fit into the first run.
    effort = dataclasses.replace(PATIENT, micro_batch_sizes=(64,))
    history = search(config_on(gpus=8), effort, NOISY)
    assert lengths(history) == [(0, 2)]


@pytest.mark.parametrize("free_lunch", [False, True])
@pytest.mark.parametrize("outcome", [Outcome.OUT_OF_MEMORY, Outcome.HUNG, Outcome.CRASHED])
@pytest.mark.parametrize("after", [1, 2])
def test_a_refinement_that_fails_ends_the_search(outcome, after, free_lunch):
    config = config_on(free_lunch=free_lunch)
    history: list[ProbeResult] = []
    for _ in range(after):
        probe = next_probe(config, AT_8, history)
        assert probe is not None
        history.append(answer(probe, NOISY))
    good = best_timing(config, history)
    probe = next_probe(config, AT_8, history)
    assert probe is not None
    history.append(ProbeResult(probe=probe, outcome=outcome))
    assert next_probe(config, AT_8, history) is None
    # What does not fit with longer accumulation would not train.
    lost = outcome is Outcome.OUT_OF_MEMORY
    assert best_timing(config, history) == (None if lost else good)


def test_runs_of_one_size_are_taken_together():
    probe = Probe(
        purpose=Purpose.TIMING,
        micro_batch_size=8,
        high=4,
        low=2,
        high_steps=3,
        epochs=3,
        compile=True,
        deadline_seconds=9.0,
    )
    longer = dataclasses.replace(probe, low=4, high=16)
    first = dataclasses.replace(
        answer(probe, NOISY), peak_bytes=7, reserved_bytes=8, graphs=3, seconds=1.0
    )
    second = dataclasses.replace(
        answer(longer, NOISY), peak_bytes=9, reserved_bytes=6, graphs=2, seconds=2.0
    )
    other = answer(dataclasses.replace(probe, micro_batch_size=4), NOISY)
    memory = answer(dataclasses.replace(probe, purpose=Purpose.MEMORY), NOISY)
    eager = answer(dataclasses.replace(probe, compile=False), NOISY)
    config = config_on()
    assert timings(config, [memory, first, other, second, eager]) == [
        dataclasses.replace(
            second, samples=first.samples + second.samples, peak_bytes=9, reserved_bytes=8, graphs=3
        ),
        other,
        eager,
    ]
    lost = dataclasses.replace(second, outcome=Outcome.OUT_OF_MEMORY)
    assert timings(config, [memory, first, other, lost, eager]) == [other, eager]
    assert timings(config, [memory, lost]) == []


def test_what_so_few_steps_may_have_missed_is_measured_again():
    effort = dataclasses.replace(AT_8, epochs=1, high_steps=6, relative_half_width=0.02)
    first, *more = search(config_on(gpus=1), effort, 0.008)
    [timed] = timings(config_on(gpus=1), [first])
    step = predicted_step_time(config_on(gpus=1), timed)
    assert step.degrees_of_freedom == 3
    # By the normal distribution this would be good enough.
    assert 1.96 * step.standard_error_seconds < 0.02 * step.seconds < step.half_width_seconds
    assert more
