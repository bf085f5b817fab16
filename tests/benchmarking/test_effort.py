"""How much time a measurement may take."""

import dataclasses

import pytest

from academic_pretraining.benchmarking.effort import QUICK, Effort


@pytest.mark.parametrize(
    ("step_seconds", "at_most", "steps", "warm_up_steps"),
    [
        (0.0, 7, 7, 3),
        (2.99, 7, 7, 3),
        (3.0, 7, 5, 2),
        (60.0, 6, 5, 2),
        # Never more than asked for.
        (60.0, 4, 4, 2),
    ],
)
def test_long_steps_are_timed_earlier_and_three_times(step_seconds, at_most, steps, warm_up_steps):
    assert Effort().steps_of(step_seconds, at_most) == (steps, warm_up_steps)


@pytest.mark.parametrize(
    ("wish", "steps", "warm_up_steps"), [(300.0, 15, 3), (240.0, 15, 3), (239.0, 5, 2)]
)
def test_a_longer_wish_is_heeded(wish, steps, warm_up_steps):
    # Fifteen steps of 20 s, of which the wish may lack a fifth.
    effort = Effort(timing_seconds=wish)
    assert effort.steps_of(20.0, 15) == (steps, warm_up_steps)


@pytest.mark.parametrize(("usual", "left_out"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 3)])
def test_three_are_timed_whatever_the_warm_up(usual, left_out):
    effort = dataclasses.replace(Effort(), warm_up_steps=usual)
    assert effort.steps_of(10.0, 30) == (left_out + 3, left_out)


def test_a_quick_run_stays_as_it_is():
    assert QUICK.steps_of(10.0, QUICK.high_steps) == (QUICK.high_steps, QUICK.warm_up_steps)


def test_all_sizes_that_were_named_may_be_timed():
    named = QUICK.within({"micro_batch_sizes": (1, 2, 4), "timing_seconds": 1.0})
    assert (named.micro_batch_sizes, named.most_timings, named.timing_seconds) == ((1, 2, 4), 3, 1)
    assert named.high_steps == QUICK.high_steps
    assert QUICK.within({}) == QUICK
    assert Effort().within({"micro_batch_sizes": (1, 2)}).most_timings == Effort().most_timings
