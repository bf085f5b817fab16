import datetime
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from academic_pretraining.errors import InvalidConfigError
from academic_pretraining.schedule import Habits, Schedule, whole_run

DAY = 86_400.0


NOTHING = Habits()


def run_of(habits: Habits = NOTHING, **changes) -> Schedule:
    """Train for ten days; a job takes 100 s to begin and a checkpoint 50 s."""
    figures = {
        "step_seconds": 8.64,
        "max_steps": 100_000,
        "micro_step_seconds": 0.3,
        "examples_per_micro_step": 32,
        "restart_seconds": 100.0,
        "save_seconds": 50.0,
    }
    return whole_run(habits, **(figures | changes))


def test_steps_alone_and_the_launch():
    schedule = run_of()
    assert (schedule.seconds, schedule.jobs) == (10 * DAY + 100, 1)
    assert schedule.text == "10.0 days: steps 10.0, launching 0.00116"


def test_evaluation_costs_a_third_of_training_on_as_much():
    schedule = run_of(Habits(evaluate_every_steps=1000, evaluation_examples=3200))
    assert schedule.evaluation_seconds == pytest.approx(100 * 100 * 0.3 / 3)


def test_a_last_micro_batch_that_is_not_full_counts_whole():
    schedule = run_of(Habits(evaluate_every_steps=100_000, evaluation_examples=33))
    assert schedule.evaluation_seconds == pytest.approx(2 * 0.3 / 3)


def test_checkpoints_are_counted():
    assert run_of(Habits(save_every_steps=1000)).saving_seconds == 100 * 50
    # The Trainer writes one in the end, too.
    assert run_of(Habits(save_every_steps=99_999)).saving_seconds == 2 * 50
    assert run_of(Habits(save_every_steps=100_001)).saving_seconds == 50


def test_jobs_go_on_from_their_last_checkpoint():
    schedule = run_of(Habits(save_every_steps=1000, time_limit_hours=24))
    again, interval = 100 + 50, 1000 * 8.64 + 50
    # Nine intervals a job: eleven jobs make 99 of the 100.
    lost = DAY - again - 9 * interval
    assert 0 < lost < interval
    assert schedule.jobs == 12
    assert schedule.repeated_seconds == pytest.approx(11 * lost + 50)
    assert schedule.restart_seconds == 100 + 11 * again
    assert schedule.text == (
        "11.1 days in 12 jobs: steps 10.0, checkpoints 0.0579, launching 0.0203, "
        "repeated steps 1.02"
    )


def test_a_limit_that_is_not_reached_changes_nothing():
    habits = Habits(save_every_steps=1000, time_limit_hours=24 * 11)
    assert run_of(habits) == run_of(Habits(save_every_steps=1000))


def test_a_job_must_reach_a_checkpoint():
    with pytest.raises(InvalidConfigError, match="a job of 2 h ends before its first checkpoint"):
        run_of(Habits(save_every_steps=1000, time_limit_hours=2))


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        # 100 s to begin, 1000 steps, the checkpoint.
        ({}, "8,790"),
        # The first one reaches it, and the second one, which has to load it, does not.
        ({"step_seconds": 7.0, "save_seconds": 60.0}, "7,220"),
        # The training is over before.
        ({"max_steps": 900}, "7,926"),
    ],
)
def test_how_long_a_job_would_have_to_be_is_said(changes, seconds):
    with pytest.raises(InvalidConfigError, match=rf"checkpoint after {seconds} s: allow"):
        run_of(Habits(save_every_steps=1000, time_limit_hours=2), **changes)


def test_a_second_job_may_end_what_it_could_not_have_begun():
    habits = Habits(save_every_steps=1000, time_limit_hours=24)
    figures = {"step_seconds": 60.0, "restart_seconds": 600.0, "save_seconds": 24_000.0}
    schedule = run_of(habits, max_steps=1300, **figures)
    assert (schedule.jobs, schedule.seconds) == (2, DAY + 600 + 24_000 + 300 * 60 + 24_000)


def test_a_checkpoint_of_unknown_time_is_asked_for():
    with pytest.raises(InvalidConfigError, match="say it with --save-seconds"):
        run_of(Habits(save_every_steps=1000), save_seconds=None)


@pytest.mark.parametrize(
    ("habits", "why"),
    [
        ({"evaluate_every_steps": 10}, "evaluation needs both its interval and its size"),
        ({"evaluation_examples": 10}, "evaluation needs both its interval and its size"),
        ({"time_limit_hours": 24.0}, "give save_every_steps"),
        ({"save_every_steps": 0}, "save_every_steps is 0, but must be above 0"),
        ({"save_every_steps": -5}, "save_every_steps is -5, but must be above 0"),
        ({"save_every_steps": 9, "time_limit_hours": math.nan}, "time_limit_hours is nan"),
        ({"save_every_steps": 9, "time_limit_hours": math.inf}, "time_limit_hours is inf"),
    ],
)
def test_habits_that_make_no_sense_are_refused(habits, why):
    with pytest.raises(InvalidConfigError, match=why):
        Habits(**habits)


def job_by_job(
    limit: float, every: int, evaluations: int, saving: int, restart: int
) -> list[float] | None:
    """Train 400 steps of 10 s, job after job, step after step.

    Give the seconds of each job; `None` where one gets nowhere.
    """
    jobs: list[float] = []
    done = 0
    while done < 400:
        at = restart + (saving if jobs else 0)
        step = begun = done
        while step < 400:
            at += 10 + evaluations
            step += 1
            if step % every == 0 or step == 400:
                at += saving
                if at > limit:
                    break
                done = step
        if done == begun:
            return None
        jobs.append(at if done == 400 else limit)
    return jobs


@given(
    limit=st.integers(60, 6000),
    every=st.integers(1, 500),
    evaluations=st.integers(0, 9),
    saving=st.integers(0, 100),
    restart=st.integers(0, 500),
)
def test_the_jobs_are_those_of_a_training_step_by_step(limit, every, evaluations, saving, restart):
    # Half a second more, so that no job ends at the very moment at which something is done.
    habits = Habits(
        save_every_steps=every,
        time_limit_hours=(limit + 0.5) / 3600,
        # One micro-batch in each step.
        **({"evaluate_every_steps": 1, "evaluation_examples": 32} if evaluations else {}),
    )
    figures = {
        "step_seconds": 10.0,
        "max_steps": 400,
        "micro_step_seconds": 3.0 * evaluations,
        "restart_seconds": float(restart),
        "save_seconds": float(saving),
    }
    whole = 400 * (10 + evaluations) + -(-400 // every) * saving + restart
    expected = job_by_job(limit + 0.5, every, evaluations, saving, restart)
    if expected is None:
        with pytest.raises(InvalidConfigError, match="ends before its first checkpoint"):
            run_of(habits, **figures)
        return
    schedule = run_of(habits, **figures)
    assert schedule.jobs == len(expected)
    assert schedule.seconds == pytest.approx(sum(expected))
    parts = (schedule.step_seconds, schedule.evaluation_seconds, schedule.saving_seconds)
    assert sum(parts) + restart == pytest.approx(whole)
    assert schedule.repeated_seconds >= 0


def test_the_end_is_a_date():
    begin = datetime.datetime(2026, 1, 1)
    assert run_of().end(begin) == "2026-01-11"
    assert run_of(max_steps=10**14).end(begin) == "a day beyond the calendar"
