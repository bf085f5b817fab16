import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from academic_pretraining.benchmarking.fit import fit_step_time
from academic_pretraining.benchmarking.probes import StepSample

seconds = st.floats(1e-4, 100)
accumulations = st.integers(1, 512)


def sample(
    accumulation: int,
    seconds: float,
    *,
    data_seconds: float = 0.0,
    skipped: bool = False,
    last_of_epoch: bool = False,
) -> StepSample:
    return StepSample(
        accumulation=accumulation,
        seconds=seconds,
        data_seconds=data_seconds,
        optimizer_seconds=0.0,
        skipped=skipped,
        last_of_epoch=last_of_epoch,
    )


def fetching(accumulation: int, a: float, b: float, fetch: float, between: float, *, last=False):
    """A step whose micro-batches are fetched in it; what is `between` steps counts as data too."""
    data = between + fetch * (accumulation - last)
    seconds = a * accumulation + b + data
    return sample(accumulation, seconds, data_seconds=data, last_of_epoch=last)


@given(a=seconds, b=seconds, low=accumulations, high=accumulations, real=accumulations)
def test_exact_steps_give_back_what_they_were_made_of(a, b, low, high, real):
    assume(low < high <= 8 * low)
    samples = [sample(n, a * n + b) for n in (high, high, low, high, low)]
    fitted = fit_step_time(samples, real)
    assert fitted.micro_step_seconds == pytest.approx(a, rel=1e-6, abs=1e-9 * b)
    # What is left when a long step is divided loses digits with its length.
    assert fitted.overhead_seconds == pytest.approx(b, rel=1e-6, abs=1e-9 * a * high)
    assert fitted.seconds == pytest.approx(a * real + b, rel=1e-6, abs=1e-9 * a * high)
    assert fitted.standard_error_seconds == pytest.approx(0, abs=1e-9 * (a * real + a * high + b))
    assert fitted.spread == pytest.approx(0, abs=1e-9)
    assert fitted.extrapolated == (real > high)


@given(
    a=seconds,
    b=seconds,
    fetch=st.floats(0, 10),
    between=st.floats(0, 10),
    low=accumulations,
    high=accumulations,
    real=accumulations,
)
def test_a_real_step_fetches_all_its_micro_batches(a, b, fetch, between, low, high, real):
    assume(low < high <= 8 * low)
    samples = [fetching(high, a, b, fetch, between)] * 3
    samples.append(fetching(low, a, b, fetch, between, last=True))
    fitted = fit_step_time(samples, real)
    micro_step = a + fetch
    scale = micro_step * (real + high) + b + between
    assert fitted.micro_step_seconds == pytest.approx(micro_step, rel=1e-6, abs=1e-6 * scale)
    assert fitted.seconds == pytest.approx(micro_step * real + b + between, abs=1e-6 * scale)


def test_the_last_of_equal_steps_fetches_one_micro_batch_less():
    samples = [fetching(4, 1.0, 0.0, 0.1, 0.0)] * 2 + [fetching(4, 1.0, 0.0, 0.1, 0.0, last=True)]
    fitted = fit_step_time(samples, 8)
    assert fitted.seconds == pytest.approx(8.8)
    assert fitted.standard_error_seconds == pytest.approx(0, abs=1e-9)


def test_noise_never_makes_fetching_cost_less_than_nothing():
    samples = [
        sample(4, 4.0, data_seconds=0.1),
        sample(4, 4.0, data_seconds=0.1),
        sample(1, 1.0, data_seconds=0.4, last_of_epoch=True),
    ]
    assert fit_step_time(samples, 8).seconds == pytest.approx(8.0)


@given(step=seconds, timed=accumulations, real=accumulations)
def test_a_single_accumulation_is_scaled_as_a_whole(step, timed, real):
    fitted = fit_step_time([sample(timed, step)] * 3, real)
    assert fitted.seconds == pytest.approx(step * real / timed)
    assert fitted.micro_step_seconds == pytest.approx(step / timed)
    assert fitted.overhead_seconds == 0
    assert fitted.extrapolated == (real > timed)


@given(
    groups=st.dictionaries(
        st.integers(8, 64), st.lists(st.floats(0.5, 2), min_size=2, max_size=9), min_size=2
    ),
    real=st.integers(8, 512),
)
def test_the_line_is_that_of_weighted_least_squares(groups, real):
    samples = [sample(n, n * value) for n, values in groups.items() for value in values]
    means = {n: statistics.fmean(n * value for value in values) for n, values in groups.items()}
    design = np.array([[1.0, s.accumulation] for s in samples])
    deviations = np.array([means[s.accumulation] for s in samples])
    target = np.array([s.seconds for s in samples])
    inverse = np.linalg.inv((design / deviations[:, None] ** 2).T @ design)
    b, a = inverse @ (design / deviations[:, None] ** 2).T @ target
    relative = sum(
        (len(values) - 1) * statistics.variance(values) / statistics.fmean(values) ** 2
        for values in groups.values()
    ) / (len(samples) - len(groups))
    # Then no line answers; see below.
    assume(real != max(groups))
    row = np.array([1.0, real])
    fitted = fit_step_time(samples, real)
    assert fitted.seconds == pytest.approx(a * real + b, rel=1e-6, abs=1e-6)
    assert fitted.micro_step_seconds == pytest.approx(a, rel=1e-6, abs=1e-6)
    assert fitted.standard_error_seconds == pytest.approx(
        math.sqrt(relative * (row @ inverse @ row)), rel=1e-6, abs=1e-9
    )
    assert fitted.degrees_of_freedom == len(samples) - len(groups)


@given(
    groups=st.dictionaries(
        st.integers(8, 64), st.lists(st.floats(0.5, 2), min_size=2, max_size=9), min_size=2
    )
)
def test_the_real_step_answers_for_itself_where_it_was_run(groups):
    samples = [sample(n, n * value) for n, values in groups.items() for value in values]
    real = max(groups)
    fitted, farther = (fit_step_time(samples, n) for n in (real, real + 1))
    own = [real * value for value in groups[real]]
    assert fitted.seconds == pytest.approx(statistics.fmean(own))
    # The noise is known from all steps, whatever their length.
    relative = sum(
        (len(values) - 1) * (statistics.stdev(values) / statistics.fmean(values)) ** 2
        for values in groups.values()
    ) / (len(samples) - len(groups))
    assert fitted.standard_error_seconds == pytest.approx(
        fitted.seconds * math.sqrt(relative / len(own)), abs=1e-9
    )
    assert (fitted.degrees_of_freedom, fitted.extrapolated) == (len(samples) - len(groups), False)
    divided = fitted.micro_step_seconds * real + fitted.overhead_seconds
    assert divided == pytest.approx(fitted.seconds)
    assert fitted.overhead_seconds >= 0
    if 0 < farther.micro_step_seconds < fitted.seconds / real:
        assert fitted.micro_step_seconds == farther.micro_step_seconds


@given(long=st.lists(st.floats(0.5, 1), min_size=2, max_size=9), short=st.floats(1.1, 2))
def test_an_impossible_line_gives_way_to_whole_steps_where_these_were_run(long, short):
    samples = [sample(4, value) for value in long] + [sample(2, short)] * 2
    at_the_end = fit_step_time(samples, 4)
    alone = fit_step_time([sample(4, value) for value in long], 4)
    assert at_the_end.seconds == pytest.approx(statistics.fmean(long))
    assert (at_the_end.seconds, at_the_end.micro_step_seconds) == (
        alone.seconds,
        alone.micro_step_seconds,
    )
    assert not at_the_end.impossible
    assert fit_step_time(samples, 5).impossible


def test_standard_error_of_a_single_accumulation_scales_with_it():
    fitted = fit_step_time([sample(4, 1.0), sample(4, 2.0), sample(4, 3.0)], 12)
    assert fitted.seconds == pytest.approx(6.0)
    assert fitted.standard_error_seconds == pytest.approx(3 / math.sqrt(3))
    assert fitted.degrees_of_freedom == 2
    assert fitted.half_width_seconds == pytest.approx(4.303 * 3 / math.sqrt(3))
    assert fitted.spread == pytest.approx(0.5)


@pytest.mark.parametrize("samples", [[(4, 1.0)], [(4, 1.0), (1, 0.25)]])
def test_steps_that_were_not_repeated_are_not_certain(samples):
    fitted = fit_step_time([sample(*one) for one in samples], 4)
    assert (fitted.seconds, fitted.spread) == (pytest.approx(1.0), 0.0)
    assert fitted.standard_error_seconds >= 0.02
    assert fitted.degrees_of_freedom == 0


def test_at_the_longest_timed_accumulation_only_its_own_steps_count():
    samples = [sample(8, 1.0), sample(8, 1.2), sample(2, 0.1), sample(2, 0.9)]
    fitted = fit_step_time(samples, 8)
    assert fitted.seconds == pytest.approx(1.1)
    assert not fitted.extrapolated


def test_steps_far_shorter_than_the_longest_are_left_out():
    samples = [sample(32, 3.2), sample(32, 3.3), sample(4, 0.5), sample(4, 0.5)]
    assert fit_step_time([sample(3, 9.0), *samples], 64) == fit_step_time(samples, 64)
    assert fit_step_time([sample(1, 9.0), *samples[:2]], 64).seconds == pytest.approx(6.5)


def test_skipped_steps_are_left_out():
    samples = [sample(4, 1.0), sample(4, 1.0), sample(2, 0.6), sample(2, 0.6)]
    skipped = [sample(4, 0.1, skipped=True), sample(2, 9.0, skipped=True)]
    assert fit_step_time([*skipped, *samples], 16) == fit_step_time(samples, 16)


def test_skipped_steps_count_where_there_are_no_others():
    skipped = [sample(4, 1.0, skipped=True), sample(2, 0.6, skipped=True)]
    assert fit_step_time(skipped, 16).seconds == pytest.approx(3.4)


def test_the_order_of_the_steps_does_not_matter():
    samples = [sample(4, 1.0), sample(2, 0.6), sample(4, 1.1), sample(2, 0.7)]
    assert fit_step_time(samples, 16) == fit_step_time(samples[::-1], 16)


def test_no_steps_cannot_be_fitted():
    with pytest.raises(ValueError, match="no timed steps"):
        fit_step_time([], 4)
