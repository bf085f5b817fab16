"""Time that GPUs spend exchanging data in a step, from the kernels that a profiler saw.

NCCL moves data by kernels. Their time is the GPU's own, also where computation runs beside them
and hides it, so that less of a step than this may be saved by less communication.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from academic_pretraining.benchmarking.probes import CommunicationSample
from academic_pretraining.benchmarking.updates import OverflowWatch

# `ncclDevKernel_AllReduce_Sum_f16_RING_LL(...)`, and not the annotation `nccl:all_reduce` that
# stands for the same time beside it.
_KERNEL = re.compile(r"\bnccl\w*Kernel")
# Steps of each length: the profiler takes seconds for every one.
_ENOUGH = 2


class CommunicationTimer(TrainerCallback):
    """Profiles the kernels of optimizer steps after warm-up, and ends training with a few.

    That is two steps of each of two lengths, on all ranks alike, for they all skip the same steps.

    Attributes:
        warm_up_steps: optimizer steps to leave out at the beginning.
        samples: one a step; a step with an fp16 overflow is left out, for its optimizer exchanges
            nothing.
        activities: what is profiled.
    """

    def __init__(
        self,
        warm_up_steps: int,
        activities: Sequence[ProfilerActivity] = (ProfilerActivity.CUDA,),
    ) -> None:
        self.warm_up_steps = warm_up_steps
        self.samples: list[CommunicationSample] = []
        self.activities = activities
        self._profile: profile | None = None
        self._accumulation = 0
        self._skipped = False
        self._overflows = OverflowWatch()

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Begin to look."""
        self._accumulation, self._skipped = 1, False
        if state.global_step >= self.warm_up_steps:
            self._profile = profile(activities=self.activities)
            self._profile.start()

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        """Count a micro-batch that is not the step's last."""
        self._accumulation += 1

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Note an fp16 overflow."""
        self._skipped = self._overflows.stepped(kwargs.get("optimizer"))()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Add up the step's kernels."""
        if self._profile is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profile.stop()
        events = self._profile.events() or []
        self._profile = None
        if not self._skipped:
            self.samples.append(communication_sample(events, self._accumulation))
        lengths = Counter(sample.accumulation for sample in self.samples)
        if sum(count >= _ENOUGH for count in lengths.values()) >= 2:
            control.should_training_stop = True


def communication_sample(events: Iterable[Any], accumulation: int) -> CommunicationSample:
    """Add up NCCL's kernels among a profiler's events of one step; nothing of the host counts."""
    seconds = [
        event.time_range.elapsed_us() / 1e6
        for event in events
        if event.device_type is not DeviceType.CPU and _KERNEL.search(event.name)
    ]
    return CommunicationSample(
        accumulation=accumulation, kernels=len(seconds), seconds=sum(seconds)
    )


def transfers(ranks: Sequence[Sequence[CommunicationSample]]) -> tuple[CommunicationSample, ...]:
    """Take each step as the rank had it that spent least in its kernels.

    A rank that comes early waits inside its kernel for the others; the last one shows the transfer
    alone.
    """
    return tuple(min(step, key=lambda sample: sample.seconds) for step in zip(*ranks, strict=True))


def communication_seconds(
    samples: Sequence[CommunicationSample], accumulation: int
) -> float | None:
    """Evaluate c0 + c1 x accumulation, the kernels' time in a step, at the real accumulation.

    Where longer steps have no more kernels, as in plain data parallelism, which exchanges
    gradients after the last micro-batch only, c1 is 0: a difference that is noise would be
    multiplied by a large accumulation.

    Returns:
        seconds; `None` where no kernel was seen, or steps of one accumulation only whose share of
        c0 is unknown.
    """
    groups: dict[int, list[CommunicationSample]] = {}
    for sample in samples:
        groups.setdefault(sample.accumulation, []).append(sample)
    if not any(sample.kernels for sample in samples) or len(groups) < 2:
        return None
    few, many = min(groups), max(groups)
    low, high = (statistics.median(s.seconds for s in groups[n]) for n in (few, many))
    more = statistics.median(s.kernels for s in groups[many]) - statistics.median(
        s.kernels for s in groups[few]
    )
    if more <= 0:
        return statistics.median(s.seconds for s in samples)
    slope = max(0.0, high - low) / (many - few)
    return low + slope * (accumulation - few)
