"""How busy others keep the host while steps are timed.

Data loading and offloading compute on the host, where the locks of `occupancy` keep nobody away.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
from transformers import TrainerCallback

from academic_pretraining.cores import allowed_cores, usable_cores


@dataclass(frozen=True, kw_only=True)
class HostUse:
    """Processor time that went by; of the difference of two moments, what went by between them.

    Attributes:
        own_seconds: of this process, all threads added up.
        busy_seconds: of all processes, on the cores that this one may run on.
        wall_seconds: by the clock.
    """

    own_seconds: float
    busy_seconds: float
    wall_seconds: float

    def __sub__(self, other: "HostUse") -> "HostUse":
        return HostUse(
            own_seconds=self.own_seconds - other.own_seconds,
            busy_seconds=self.busy_seconds - other.busy_seconds,
            wall_seconds=self.wall_seconds - other.wall_seconds,
        )


def host_use() -> HostUse:
    """Read the clocks."""
    own = allowed_cores()
    busy = 0.0
    for number, core in enumerate(psutil.cpu_times(percpu=True)):
        if number in own:
            # What a guest of this host computes is counted under `user`, too.
            fields = ("user", "nice", "system", "irq", "softirq", "steal")
            busy += sum(getattr(core, field, 0.0) for field in fields)
    return HostUse(
        own_seconds=time.process_time(), busy_seconds=busy, wall_seconds=time.perf_counter()
    )


class HostWatch(TrainerCallback):
    """Reads the clocks at the end of the warm-up and of the training.

    Attributes:
        warm_up_steps: optimizer steps to leave out at the beginning: compilation has processes of
            its own.
        use: what went by in between; `None` before the end, or where all steps were warm-up.
    """

    def __init__(self, warm_up_steps: int) -> None:
        self.warm_up_steps = warm_up_steps
        self.use: HostUse | None = None
        self._began: HostUse | None = None
        self._begun_at = 0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Note from where it goes on: a resumed training warms up too."""
        self._begun_at = state.global_step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Begin to look."""
        if state.global_step - self._begun_at == self.warm_up_steps:
            self._began = host_use()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Look again."""
        if self._began is not None:
            self.use = host_use() - self._began


def other_cpu_share(ranks: Sequence[HostUse | None], ranks_per_node: int) -> float | None:
    """Say which share of the ranks' cores other processes kept busy, on the busiest node.

    Args:
        ranks: what went by on each, node by node.
        ranks_per_node: how many of them share a host.

    Returns:
        `None` where it was not looked at, and under a quota of a container, whose cores' other
        processes take nothing from it.
    """
    cores = len(allowed_cores())
    if usable_cores() < cores:
        return None
    shares = []
    for first in range(0, len(ranks), ranks_per_node):
        node = [use for use in ranks[first : first + ranks_per_node] if use and use.wall_seconds]
        if node:
            busy = max(use.busy_seconds / use.wall_seconds for use in node)
            own = sum(use.own_seconds / use.wall_seconds for use in node)
            shares.append(min(max((busy - own) / cores, 0.0), 1.0))
    return max(shares, default=None)
