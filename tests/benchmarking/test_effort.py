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


@pytest.mark.parametrize("warm_up_steps", [1, 2, 3, 4])
def test_a_step_is_left_out_and_three_are_timed_whatever_the_warm_up(warm_up_steps):
    effort = dataclasses.replace(Effort(), warm_up_steps=warm_up_steps)
    steps, left_out = effort.steps_of(10.0, 30)
    assert left_out >= 1
    assert steps - left_out == 3


def test_a_quick_run_stays_as_it_is():
    assert QUICK.steps_of(10.0, QUICK.high_steps) == (QUICK.high_steps, QUICK.warm_up_steps)
