"""A real training's speed and memory beside the predicted ones."""

import datetime
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from academic_pretraining.benchmarking.host import HostWatch, other_cpu_share
from academic_pretraining.benchmarking.probes import StepSample
from academic_pretraining.benchmarking.ranks import gather
from academic_pretraining.benchmarking.timing import StepTimer
from academic_pretraining.cores import crowd


def speed_report(
    timer: StepTimer,
    predicted: dict[str, Any] | None,
    *,
    units_per_step: int,
    unit: str,
    host: HostWatch | None = None,
    ranks_per_node: int = 1,
) -> dict[str, Any]:
    """Gather what a training did, over all ranks; every rank must call it.

    Args:
        timer: of this rank.
        predicted: `step_seconds`, `peak_bytes` and `mfu`, where they are known.
        units_per_step: tokens or images in one optimizer step over all ranks.
        unit: `tokens` or `images`.
        host: of this rank.
        ranks_per_node: how many share a host.

    Returns:
        steps, their mean `step_seconds`, its `step_standard_error_seconds` and the `samples`
        behind it at the slowest rank (warm-up and fp16 overflows left out), `units_per_second`,
        `mfu` where one was predicted, `peak_bytes` of the fullest GPU (`None` on a CPU), the
        prediction, and `other_cpu_share`, as in a measurement; all times are `None` where no step
        was timed.
    """
    everyone = gather((_own(timer), host.use if host else None))
    report = _report([own for own, _ in everyone], predicted, units_per_step, unit)
    others = other_cpu_share([use for _, use in everyone], ranks_per_node)
    return report | {"other_cpu_share": others}


def _own(timer: StepTimer) -> tuple[list[StepSample], int | None]:
    return timer.samples(), torch.cuda.max_memory_allocated() if timer.cuda else None


def _report(
    everyone: list[tuple[list[StepSample], int | None]],
    predicted: dict[str, Any] | None,
    units_per_step: int,
    unit: str,
) -> dict[str, Any]:
    steps = _slowest([samples for samples, _ in everyone])
    peaks = [peak for _, peak in everyone if peak is not None]
    mean = statistics.fmean(steps) if steps else None
    mfu = None
    if mean and predicted and predicted.get("mfu") is not None:
        # The FLOPs are the same.
        mfu = predicted["mfu"] * predicted["step_seconds"] / mean
    return {
        "steps": len(steps),
        "step_seconds": mean,
        "step_standard_error_seconds": (
            statistics.stdev(steps) / math.sqrt(len(steps)) if len(steps) > 1 else None
        ),
        "samples": steps,
        "unit": unit,
        "units_per_second": units_per_step / mean if mean else None,
        "mfu": mfu,
        "peak_bytes": max(peaks, default=None),
        "predicted": predicted,
        "finished_at": time.time(),
    }


def _slowest(ranks: list[list[StepSample]]) -> list[float]:
    """Take each step as its slowest rank had it.

    Left out are fp16 overflows, and the shorter step that an epoch ends with.
    """
    whole = max((sample.accumulation for sample in ranks[0]), default=0)
    return [
        max(sample.seconds for sample in step)
        for step in zip(*ranks, strict=True)
        if not any(sample.skipped or sample.accumulation < whole for sample in step)
    ]


def deviations(report: dict[str, Any]) -> dict[str, float]:
    """How far the predictions are from the truth, relative to it: `step` and `peak memory`."""
    predicted = report["predicted"]
    if not predicted or not report["steps"]:
        return {}
    found = {"step": predicted["step_seconds"] / report["step_seconds"] - 1}
    if report["peak_bytes"]:
        found["peak memory"] = predicted["peak_bytes"] / report["peak_bytes"] - 1
    return found


def comparison_text(report: dict[str, Any]) -> str:
    """Lay a report out in lines; the difference is the prediction's, relative to the truth."""
    if not report["steps"]:
        return "no step was timed: the first ones are warm-up"
    predicted = report["predicted"]
    step = report["step_seconds"]
    error = report["step_standard_error_seconds"]
    head = f"{report['steps']} step{'s' * (report['steps'] > 1)}"
    if error is not None:
        head += f", standard error {error / step:.2%}"
    rows = [(head, "actual", "predicted", "difference")]
    off = deviations(report)
    share = predicted["step_seconds"] / step if predicted else 1.0
    rate = report["units_per_second"]
    rows += [
        ("step", f"{step:.4g} s", f"{step * share:.4g} s", f"{share - 1:+.2%}"),
        (
            "throughput",
            f"{rate:,.0f} {report['unit']}/s",
            f"{rate / share:,.0f} {report['unit']}/s",
            f"{1 / share - 1:+.2%}",
        ),
    ]
    if report["mfu"] is not None:
        mfu = predicted["mfu"]
        rows.append(("MFU", f"{report['mfu']:.2%}", f"{mfu:.2%}", f"{1 / share - 1:+.2%}"))
    if peak := report["peak_bytes"]:
        wanted = predicted["peak_bytes"] / 2**30 if predicted else 0.0
        difference = f"{off['peak memory']:+.2%}" if predicted else ""
        rows.append(
            ("peak memory", f"{peak / 2**30:.2f} GiB", f"{wanted:.2f} GiB", difference),
        )
    columns = 4 if predicted else 2
    widths = [max(len(row[i]) for row in rows) for i in range(columns)]
    lines = []
    for row in rows:
        cells = [f"{cell:>{w}}" for cell, w in zip(row[1:columns], widths[1:], strict=True)]
        lines.append("  ".join([f"{row[0]:<{widths[0]}}", *cells]))
    lines += filter(None, [crowd(report.get("other_cpu_share"))])
    return "\n".join(lines)


def write_speed(report: dict[str, Any], output_dir: Path) -> None:
    """Keep a report as `speed.json`."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "speed.json").write_text(json.dumps(report, indent=2) + "\n")


class SaysSpeed(TrainerCallback):
    """Prints, once, how the first timed steps compare and when the training will be over.

    The figures are those of this rank, so that nothing waits for the others.

    Args:
        timer: of this rank; it must come before this callback.
        predicted, units_per_step, unit: as for `speed_report`.
        timed_steps: after how many.
        last_step: the last optimizer step, where the training ends before its schedule.
    """

    def __init__(
        self,
        timer: StepTimer,
        predicted: dict[str, Any] | None,
        *,
        units_per_step: int,
        unit: str,
        timed_steps: int = 8,
        last_step: int | None = None,
    ) -> None:
        self._timer, self._predicted = timer, predicted
        self._how = (units_per_step, unit)
        self._left = timer.warm_up_steps + timed_steps
        self._last_step = last_step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Print after the step that was waited for."""
        self._left -= 1
        if self._left or not state.is_world_process_zero:
            return
        report = _report([_own(self._timer)], self._predicted, *self._how)
        _say(comparison_text(report))
        left = min(state.max_steps, self._last_step or state.max_steps) - state.global_step
        if report["steps"] and left > 0:
            _say(finish_text(report["step_seconds"], left))


def _say(text: str) -> None:
    # torchrunx passes on what is flushed.
    print(text, flush=True)


def finish_text(step_seconds: float, steps: int) -> str:
    """Say when so many optimizer steps will be over, from now."""
    left = datetime.timedelta(seconds=round(steps * step_seconds))
    end = f"{datetime.datetime.now().astimezone() + left:%Y-%m-%d %H:%M %Z}"
    are_left = "1 optimizer step is left, which alone takes"
    if steps > 1:
        are_left = f"{steps:,} optimizer steps are left, which alone take"
    return f"{are_left} {left}: until {end}"


def outlook(step_seconds: float, warm_up_steps: int, limit_seconds: float) -> str:
    """Say how long a training to verify a prediction takes where the prediction is true.

    Args:
        step_seconds: predicted.
        warm_up_steps: at the beginning, which are not timed.
        limit_seconds: of timed steps at most; one is timed at least.
    """
    timed = max(1, int(min(limit_seconds / step_seconds, 1e6)))
    # A file's prediction may be anything; datetime ends at 8.6e13 s.
    takes = datetime.timedelta(seconds=round(min((warm_up_steps + timed) * step_seconds, 1e13)))
    return (
        f"{warm_up_steps} optimizer steps of warm-up and {timed:,} timed ones at most, "
        f"{step_seconds:,.4g} s each as predicted: {takes}, and compilation before"
    )


# Every step overflows, or is the first one of its epoch and untimed: nothing will be known.
_MOST_IN_VAIN = 5


class StopsWhenKnown(TrainerCallback):
    """Stops a training when the mean of its steps is known well enough; alike on all ranks.

    The ranks agree twice, after the first timed step and after a few; what that costs falls into
    steps that are not timed.

    Args:
        timer: of this rank; it must come before this callback.
        predicted: as for `speed_report`; says beforehand how long it will take.
        relative_error: wished standard error of the mean, over it.
        limit_seconds: of timed steps, at most; the first one is never left out.
        few: timed steps from which the spread is judged.
    """

    def __init__(
        self,
        timer: StepTimer,
        *,
        predicted: dict[str, Any] | None = None,
        relative_error: float = 0.01,
        limit_seconds: float = 120.0,
        few: int = 4,
    ) -> None:
        self._timer = timer
        self._predicted = predicted
        self._relative_error, self._limit_seconds, self._few = relative_error, limit_seconds, few
        self._ends_at: int | None = None
        self._in_vain = 0
        self._asks_at = timer.warm_up_steps + 1

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Say how long it will take."""
        if self._predicted and state.is_world_process_zero:
            warm_up_steps = self._timer.warm_up_steps
            _say(outlook(self._predicted["step_seconds"], warm_up_steps, self._limit_seconds))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Decide, or do what was decided."""
        step = state.global_step
        if step == self._asks_at:
            self._ask(step)
        if step == self._ends_at:
            control.should_training_stop = True

    def _ask(self, step: int) -> None:
        steps = _slowest(gather(self._timer.samples()))
        self._in_vain += not steps
        if self._in_vain == _MOST_IN_VAIN:
            self._ends_at = step
            return
        possible = int(self._limit_seconds / statistics.fmean(steps)) if steps else self._few
        if len(steps) < self._few and possible >= self._few:
            # One more for the step that this question disturbs.
            self._asks_at = step + 1 + self._few - len(steps)
        else:
            self._ends_at = step + max(0, min(possible, self._wanted(steps)) - len(steps))
            # The disturbed one, where more are to come.
            self._ends_at += self._ends_at > step
        self._timer.leave_out_current()

    def _wanted(self, steps: list[float]) -> int:
        if len(steps) < 2:
            return self._few
        spread = statistics.stdev(steps) / statistics.fmean(steps)
        return max(self._few, math.ceil((spread / self._relative_error) ** 2))
