"""How long a whole training takes: steps, evaluation, checkpoints, restarts."""

import datetime
import math
from dataclasses import dataclass

from academic_pretraining.analytic import SECONDS_PER_DAY
from academic_pretraining.errors import InvalidConfigError

# More is a mistake, and would overflow.
_MOST = 1e12


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What a training does beside its steps; the defaults do nothing.

    Attributes:
        evaluate_every_steps: optimizer steps between evaluations.
        evaluation_examples: in each of them.
        save_every_steps: optimizer steps between checkpoints.
        time_limit_hours: of one job, after which the next one goes on from the last checkpoint.

    Raises:
        InvalidConfigError: with every rule that is broken.
    """

    evaluate_every_steps: int | None = None
    evaluation_examples: int | None = None
    save_every_steps: int | None = None
    time_limit_hours: float | None = None

    def __post_init__(self) -> None:
        reasons = [
            f"{name} is {value}, but must be above 0 and below {_MOST:.0e}: leave it out for none"
            for name, value in vars(self).items()
            if value is not None and not 0 < value < _MOST
        ]
        if (self.evaluate_every_steps is None) != (self.evaluation_examples is None):
            reasons.append(
                "evaluation needs both its interval and its size: give evaluate_every_steps and "
                "evaluation_examples"
            )
        if self.time_limit_hours is not None and self.save_every_steps is None:
            reasons.append(
                "under a time limit a training goes on from checkpoints: give save_every_steps"
            )
        if reasons:
            raise InvalidConfigError(*reasons)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A whole training, in seconds on the wall, waiting in a queue left out.

    Attributes:
        step_seconds, evaluation_seconds, saving_seconds: of all steps, evaluations, checkpoints.
        restart_seconds: of all launches, the first one included.
        repeated_seconds: of what a job's end takes away and the next one does again.
        jobs: how many.
    """

    step_seconds: float
    evaluation_seconds: float
    saving_seconds: float
    restart_seconds: float
    repeated_seconds: float
    jobs: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return (
            self.step_seconds
            + self.evaluation_seconds
            + self.saving_seconds
            + self.restart_seconds
            + self.repeated_seconds
        )

    def end(self, begin: datetime.datetime) -> str:
        """Write the date on which it is over."""
        try:
            return f"{begin + datetime.timedelta(seconds=self.seconds):%Y-%m-%d}"
        except OverflowError:
            return "a day beyond the calendar"

    @property
    def text(self) -> str:
        """The sum in words."""
        parts = {
            "steps": self.step_seconds,
            "evaluation": self.evaluation_seconds,
            "checkpoints": self.saving_seconds,
            "launching": self.restart_seconds,
            "repeated steps": self.repeated_seconds,
        }
        named = [f"{name} {_days(value)}" for name, value in parts.items() if value]
        jobs = f" in {self.jobs} jobs" if self.jobs > 1 else ""
        return f"{_days(self.seconds)} days{jobs}: {', '.join(named)}"


def whole_run(
    habits: Habits,
    *,
    step_seconds: float,
    max_steps: int,
    micro_step_seconds: float,
    examples_per_micro_step: int,
    restart_seconds: float,
    save_seconds: float | None,
) -> Schedule:
    """Add up a training.

    An evaluation is taken to cost a third of what training on as many examples does, for it has no
    backward pass, and evaluations to be spread over the steps. A checkpoint is taken to load as
    fast as it is written; the Trainer writes one after the last step, too. A job that its time
    limit ends loses what it has done since its last checkpoint, every one the same.

    Args:
        habits: what is done beside the steps.
        step_seconds: one optimizer step.
        max_steps: optimizer steps of the whole training.
        micro_step_seconds: one micro-batch, forward and backward, on each GPU.
        examples_per_micro_step: in these, over all GPUs.
        restart_seconds: from launch to the end of the first step.
        save_seconds: one checkpoint; `None` where it is not known.

    Raises:
        InvalidConfigError: the checkpoint's time is needed but not known, or a job ends before it
            gets anywhere.
    """
    steps = step_seconds * max_steps
    evaluation = 0.0
    if habits.evaluate_every_steps and habits.evaluation_examples:
        micro_batches = math.ceil(habits.evaluation_examples / examples_per_micro_step)
        times = max_steps // habits.evaluate_every_steps
        evaluation = times * micro_batches * micro_step_seconds / 3
    saving = 0.0
    if habits.save_every_steps:
        if save_seconds is None:
            raise InvalidConfigError(
                "how long a checkpoint takes was not measured for this setting: say it with "
                "--save-seconds"
            )
        saving = math.ceil(max_steps / habits.save_every_steps) * save_seconds
    work = steps + evaluation + saving
    jobs, repeated = 1, 0.0
    again = restart_seconds + (save_seconds or 0.0)
    limit = 3600 * (habits.time_limit_hours or math.inf)
    if work + restart_seconds > limit and habits.save_every_steps and save_seconds is not None:
        jobs, repeated = _in_jobs(
            limit,
            max_steps=max_steps,
            step_seconds=(steps + evaluation) / max_steps,
            save_every_steps=habits.save_every_steps,
            save_seconds=save_seconds,
            begins=(restart_seconds, again),
        )
    return Schedule(
        step_seconds=steps,
        evaluation_seconds=evaluation,
        saving_seconds=saving,
        restart_seconds=restart_seconds + (jobs - 1) * again,
        repeated_seconds=repeated,
        jobs=jobs,
    )


def _in_jobs(
    limit: float,
    *,
    max_steps: int,
    step_seconds: float,
    save_every_steps: int,
    save_seconds: float,
    begins: tuple[float, float],
) -> tuple[int, float]:
    """Divide what takes longer than one job; give the jobs, and the seconds that they repeat.

    Args:
        limit: seconds of a job.
        max_steps: optimizer steps of the whole training.
        step_seconds: one of them, with its share of evaluations.
        save_every_steps: optimizer steps between checkpoints.
        save_seconds: one checkpoint.
        begins: seconds before the steps, of the first job and of each other one.

    Raises:
        InvalidConfigError: a job ends before it gets anywhere.
    """
    interval = save_every_steps * step_seconds + save_seconds
    first, each = (max(0.0, (limit - seconds) // interval) for seconds in begins)
    # What is left of a job's time when its last interval is over.
    over, again_over = limit - begins[0] - first * interval, limit - begins[1] - each * interval
    # The last job goes on then, and needs a checkpoint at its end alone.
    beyond = max(0.0, (again_over - save_seconds) / step_seconds)
    last = each * save_every_steps + min(beyond, save_every_steps)
    left = max_steps - first * save_every_steps
    if not first or (not each and left > last):
        to_it = min(save_every_steps, max_steps) * step_seconds + save_seconds
        raise InvalidConfigError(
            f"a job of {limit / 3600:g} h ends before its first checkpoint after "
            f"{begins[bool(first)] + to_it:,.0f} s: allow more time, or save more often"
        )
    between = math.ceil(max(0.0, left - last) / (each * save_every_steps)) if each else 0
    return 2 + between, over + between * again_over


def _days(seconds: float) -> str:
    days = seconds / SECONDS_PER_DAY
    return f"{days:,.1f}" if days >= 10 else f"{days:.3g}"
