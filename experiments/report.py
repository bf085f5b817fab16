"""What people read of a grid and of its progress."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from academic_pretraining.config import TrainingConfig
from academic_pretraining.cores import crowd
from academic_pretraining.methods import Method

if TYPE_CHECKING:
    from academic_pretraining.benchmarking.probes import Probe


def seconds(value: float) -> str:
    """Write a duration shortly."""
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def grid_lines(
    points: Iterable[tuple[Method, tuple[str, ...]]],
    configs: Mapping[Method, TrainingConfig],
    sizes: Collection[int] = (),
) -> Iterator[str]:
    """Describe each point of a grid: its batch plans, or why it is skipped.

    Args:
        points: each method with the reasons against it.
        configs: of the valid ones.
        sizes: micro-batch sizes to which the plans are limited; none for all.
    """
    for method, reasons in points:
        if reasons:
            yield f"skip  {method.label}: {'; '.join(reasons)}"
            continue
        plans = [p for p in configs[method].plans() if not sizes or p.micro_batch_size in sizes]
        first, last = (
            f"{plan.micro_batch_size} x {plan.gradient_accumulation_steps}"
            for plan in (plans[0], plans[-1])
        )
        world_size = plans[0].world_size
        yield (
            f"run   {method.label}: global batch {plans[0].global_batch_size} = {world_size} "
            f"GPU{'s' * (world_size > 1)} x micro-batch x accumulation, "
            + (f"from {first} to {last} ({len(plans)} plans)" if first != last else first)
        )


class Progress:
    """Says on stderr which setting of how many runs, the time left and the best so far."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._began = time.monotonic()
        self._waits_since: float | None = None
        self._durations: list[float] = []
        self._best: tuple[float, str] | None = None

    def starts(self, index: int, total: int, left: int, config: TrainingConfig) -> None:
        """Announce a setting; `left` counts those to measure, this one included."""
        self._began, self._waits_since = time.monotonic(), None
        time_left = ""
        if self._durations:
            mean = sum(self._durations) / len(self._durations)
            time_left = f", about {seconds(mean * left)} left"
        best = ""
        if self._best:
            best = f", best so far {seconds(self._best[0])} a step ({self._best[1]})"
        self._print(f"[{index}/{total}] {config.method.label}{time_left}{best}")

    def recalls(self, config: TrainingConfig, record: dict[str, Any]) -> None:
        """Let an earlier result compete for the best one."""
        if best := record["measurement"]["best"]:
            self._offer(best["step_seconds"], config)

    def probes(self, probe: "Probe") -> None:
        """Say what the setting is doing."""
        self._goes_on()
        self._say(time.monotonic() - self._began, probe.description)

    def waits(self, text: str) -> None:
        """Say what keeps the setting from beginning, until its first probe."""
        # One GPU after another may be waited for.
        self._goes_on()
        self._say(time.monotonic() - self._began, text)
        self._waits_since = time.monotonic()

    def ends(self, config: TrainingConfig, record: dict[str, Any] | None, note: str) -> None:
        """Say how the setting ended."""
        self._goes_on()
        elapsed = time.monotonic() - self._began
        self._durations.append(elapsed)
        if record is None:
            self._say(elapsed, f"failed: {note}")
            return
        best = record["measurement"]["best"]
        if best is None:
            cause = record["measurement"].get("out_of_memory_cause")
            self._say(elapsed, ": ".join(filter(None, ["out of memory", cause])))
            return
        plan = f"{best['micro_batch_size']} x {best['gradient_accumulation_steps']}"
        said = [f"{seconds(best['step_seconds'])} a step at {plan}"]
        said += filter(None, [crowd(best.get("other_cpu_share"))])
        self._say(elapsed, "; ".join(said))
        self._offer(best["step_seconds"], config)

    def _goes_on(self) -> None:
        """Leave the time that was waited out of the setting's, from which the rest is told."""
        if self._waits_since is not None:
            self._began += time.monotonic() - self._waits_since
            self._waits_since = None

    def _say(self, elapsed: float, text: str) -> None:
        self._print(f"    {seconds(elapsed):>8}  {text}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _offer(self, step_seconds: float, config: TrainingConfig) -> None:
        if self._best is None or step_seconds < self._best[0]:
            self._best = (step_seconds, config.method.label)
