"""Timing the unmodified Trainer from a callback."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import TrainerCallback

from academic_pretraining.benchmarking.probes import StepSample
from academic_pretraining.benchmarking.ranks import gather
from academic_pretraining.benchmarking.updates import OverflowWatch

Mark = torch.cuda.Event | float


@dataclass(kw_only=True)
class _Step:
    start: Mark
    fetched: Mark | None = None
    gradients: Mark | None = None
    end: Mark | None = None
    accumulation: int = 0
    skipped: Callable[[], bool] = lambda: False
    last_of_epoch: bool = False
    number: int = 0


@dataclass
class StepTimer(TrainerCallback):
    """Times every optimizer step of a Trainer; changes nothing that it does.

    A step lasts from the end of the one before to its own end, so that fetching data, gradient
    synchronisation, clipping, optimizer, scheduler and logging are all inside. The first step of
    an epoch is left out, because it also pays for the epoch's data loader.

    On a GPU the marks are CUDA events, which are read only after the training: nothing waits.

    Attributes:
        cuda: whether to mark time on the GPU or, for a CPU, by the wall clock.
        warm_up_steps: optimizer steps to leave out at the beginning of this run.
        last_step: the last optimizer step of it to time; a long training needs an end.
        warm_up_seconds: wall seconds until the end of the first step.
        on_warm: called then.
    """

    cuda: bool
    warm_up_steps: int = 2
    last_step: int = 1000
    warm_up_seconds: float = 0.0
    on_warm: Callable[[], None] = lambda: None
    _steps: list[_Step] = field(default_factory=list)
    _current: _Step | None = None
    _began: float = 0.0
    _begun_at: int = 0
    _overflows: OverflowWatch = field(default_factory=OverflowWatch)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Forget an earlier training."""
        self._steps, self._current, self._began = [], None, time.perf_counter()
        # A resumed training warms up too.
        self._begun_at = state.global_step

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Leave out the step that starts a data loader."""
        self._current = None

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Mark that the step's micro-batches have been fetched."""
        if self._current:
            self._current.fetched = self._mark()

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        """Count a micro-batch that is not the step's last."""
        if self._current:
            self._current.accumulation += 1

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Mark that the gradients are complete and clipped."""
        if self._current:
            self._current.gradients = self._mark()

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Note what tells of an fp16 overflow, in which the optimizer does nothing."""
        skipped = self._overflows.stepped(kwargs.get("optimizer"))
        if self._current:
            self._current.skipped = skipped

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Close this step and open the next one."""
        now = self._mark()
        number = state.global_step - self._begun_at
        if number == 1:
            if self.cuda:
                torch.cuda.synchronize()
            self.warm_up_seconds = time.perf_counter() - self._began
            self.on_warm()
        if self._current:
            self._current.accumulation += 1
            self._current.end = now
            self._current.number = number
            loader = kwargs.get("train_dataloader")
            self._current.last_of_epoch = bool(getattr(loader, "end_of_dataloader", False))
            self._steps.append(self._current)
        self._current = _Step(start=now) if number < self.last_step else None

    def on_save(self, args, state, control, **kwargs) -> None:
        """Leave out the step that has begun before a checkpoint was written."""
        self.leave_out_current()

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        """Likewise before an evaluation."""
        self.leave_out_current()

    def leave_out_current(self) -> None:
        """Do not time the step that has just begun: something else is disturbing it."""
        self._current = None

    def samples(self) -> list[StepSample]:
        """Read the marks; waits for the GPU."""
        if self.cuda:
            torch.cuda.synchronize()
        return [
            StepSample(
                accumulation=step.accumulation,
                seconds=_between(step.start, step.end),
                data_seconds=_between(step.start, step.fetched),
                optimizer_seconds=_between(step.gradients, step.end),
                skipped=step.skipped(),
                last_of_epoch=step.last_of_epoch,
            )
            for step in self._steps
            if step.number > self.warm_up_steps
        ]

    def _mark(self) -> Mark:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class EnoughTimed(TrainerCallback):
    """Ends a training with the epoch by which it has lasted long enough, on all ranks alike.

    Args:
        enough_seconds: wall time after the first step.
    """

    def __init__(self, enough_seconds: float) -> None:
        self.enough_seconds = enough_seconds
        self._began: float | None = None

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Begin when everything has been compiled."""
        if self._began is None:
            self._began = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        """Ask all ranks, while no step is timed: an epoch's first one is left out."""
        lasted = time.perf_counter() - self._began if self._began is not None else 0.0
        if max(gather(lasted)) >= self.enough_seconds:
            control.should_training_stop = True


@dataclass
class SaveTimer(TrainerCallback):
    """Times a checkpoint, from the end of its optimizer step to its last byte.

    Attributes:
        cuda: whether there is a GPU to wait for.
        seconds: of the last checkpoint; `None` before it.
        peak_bytes: largest device memory allocated meanwhile; 0 on a CPU.
    """

    cuda: bool
    seconds: float | None = None
    peak_bytes: int = 0
    _began: float = 0.0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Wait for the step, so that only what follows counts."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._began = time.perf_counter()

    def on_save(self, args, state, control, **kwargs) -> None:
        """Note how long it took."""
        if self.cuda:
            torch.cuda.synchronize()
            self.peak_bytes = torch.cuda.max_memory_allocated()
        self.seconds = time.perf_counter() - self._began


def _between(start: Mark | None, end: Mark | None) -> float:
    """Seconds from one mark to another; 0 where either is missing."""
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end) / 1000
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    return 0.0
