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
    limit = 3600 * (habits.time_limit_hours or math.inf)
    if work + restart_seconds <= limit or not habits.save_every_steps or save_seconds is None:
        return Schedule(
            step_seconds=steps,
            evaluation_seconds=evaluation,
            saving_seconds=saving,
            restart_seconds=restart_seconds,
            repeated_seconds=0.0,
            jobs=1,
        )
    again = restart_seconds + save_seconds
    step = (steps + evaluation) / max_steps
    interval = habits.save_every_steps * step + save_seconds
    first, each = (max(0.0, (limit - begins) // interval) for begins in (restart_seconds, again))
    # The last job goes on past its last interval, and needs a checkpoint at its end alone.
    beyond = max(0.0, (limit - again - each * interval - save_seconds) / step)
    last = each * habits.save_every_steps + min(beyond, habits.save_every_steps)
    left = max_steps - first * habits.save_every_steps
    if not first or (not each and left > last):
        begins = again if first else restart_seconds
        steps_to_it = min(habits.save_every_steps, max_steps)
        raise InvalidConfigError(
            f"a job of {habits.time_limit_hours:g} h ends before its first checkpoint after "
            f"{begins + steps_to_it * step + save_seconds:,.0f} s: allow more time, or save more "
            "often"
        )
    between = math.ceil(max(0.0, left - last) / (each * habits.save_every_steps)) if each else 0
    return Schedule(
        step_seconds=steps,
        evaluation_seconds=evaluation,
        saving_seconds=saving,
        restart_seconds=restart_seconds + (1 + between) * again,
        repeated_seconds=limit
        - restart_seconds
        - first * interval
        + between * (limit - again - each * interval),
        jobs=2 + between,
    )


def _days(seconds: float) -> str:
    days = seconds / SECONDS_PER_DAY
    return f"{days:,.1f}" if days >= 10 else f"{days:.3g}"
