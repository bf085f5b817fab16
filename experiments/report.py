"""Tables and progress that people read."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from academic_pretraining.analytic import hardware_flops
from academic_pretraining.config import TrainingConfig
from academic_pretraining.cores import crowd
from academic_pretraining.methods import Method
from academic_pretraining.results import method_of

if TYPE_CHECKING:
    import polars as pl

    from academic_pretraining.benchmarking.probes import Probe


def results_table(rows: "pl.DataFrame") -> Table:
    """Lay results out, fastest first."""
    table = Table(title="Results, fastest first", title_justify="left")
    for column in ("model", "hardware", "method", "micro-batch x accumulation", "step"):
        table.add_column(column, overflow="fold")
    for column in ("training", "throughput", "MFU", "peak memory"):
        table.add_column(column, justify="right")
    table.add_column("compile")
    table.add_column("numerics")
    for row in rows.sort("step_seconds", nulls_last=True).iter_rows(named=True):
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    method = method_of(row)
    nodes = f"{row['num_nodes']} x " if row["num_nodes"] > 1 else ""
    model = row["model"]
    if not row["current_recipe"]:
        model += " (an older recipe)"
    elif not row["current_arguments"]:
        model += " (other training arguments)"
    if not row["current_libraries"]:
        model += f" ({row['libraries'] or 'other libraries'})"
    if row["limits"]:
        model += f" (with {row['limits']})"
    if row["company"]:
        model += " (beside others on the GPUs)"
    head = [model, f"{nodes}{row['gpus_per_node']} x {row['gpu_type']}", method.label]
    if row["outcome"] != "measured":
        missing = row["missing_gib"]
        short = f", {missing:.2f} GiB short" if missing is not None else ""
        return [*head, row["outcome"] + short, "-", "-", "-", "-", "-", row["compile"], "-"]
    return [
        *head,
        f"{row['micro_batch_size']} x {row['grad_acc_steps']}",
        f"{seconds(row['step_seconds'])} \u00b1 {100 * row['step_spread']:.1f}%",
        days(row),
        _throughput(row),
        _percent(row["mfu"]),
        f"{row['peak_memory_gib']:.1f} GiB",
        row["compile"],
        row["numerics"],
    ]


def detail_table(rows: "pl.DataFrame") -> Table:
    """Lay out where the measured steps' FLOPs and time go, fastest first."""
    table = Table(
        title="Of one optimizer step",
        title_justify="left",
        caption=(
            "communication: time of the GPUs' exchange, also where computation hides it\n"
            "others: of the host's cores, what other processes kept busy meanwhile\n"
            "checkpoint: how long writing one takes, and GPU memory at its height"
        ),
        caption_justify="left",
    )
    table.add_column("method", overflow="fold")
    for column in ("model FLOPs", "hardware FLOPs", "ceiling", "of datasheet", "of ceiling"):
        table.add_column(column, justify="right")
    for column in ("throughput", "data", "communication", "optimizer", "others", "checkpoint"):
        table.add_column(column, justify="right")
    for row in rows.filter(outcome="measured").sort("step_seconds").iter_rows(named=True):
        flops = row["model_flops_per_step"]
        checkpointing = row["activation_checkpointing"]
        ceiling = row["ceiling_flops"]
        table.add_row(
            method_of(row).label,
            f"{flops:.3g}",
            f"{hardware_flops(flops, activation_checkpointing=checkpointing):.3g}",
            f"{ceiling / 1e12:,.4g} TFLOP/s" if ceiling is not None else "-",
            _percent(row["mfu"]),
            _percent(row["ceiling_share"]),
            _throughput(row),
            _percent(row["data_share"]),
            _percent(row["communication_share"]),
            _percent(row["optimizer_share"]),
            _percent(row["other_cpu_share"]),
            _checkpoint(row),
        )
    return table


def days(row: dict[str, Any]) -> str:
    """Write a training time with its 95% interval."""
    half = (row["training_days_high"] - row["training_days_low"]) / 2
    digits = max(1, -math.floor(math.log10(half))) if 0 < half < 1 else 1
    return f"{row['training_days']:,.{digits}f} \u00b1 {half:,.{digits}f} days"


def _throughput(row: dict[str, Any]) -> str:
    unit = "tok/s" if row["units_per_example"] > 1 else "img/s"
    return f"{row['units_per_second']:,.0f} {unit}"


def _checkpoint(row: dict[str, Any]) -> str:
    if row["save_seconds"] is None:
        return "-"
    memory = f", {row['save_peak_gib']:.1f} GiB" if row["save_peak_gib"] else ""
    return f"{seconds(row['save_seconds'])}{memory}"


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f}%" if share is not None else "-"


def seconds(value: float) -> str:
    """Write a duration shortly."""
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def grid_lines(
    points: Iterable[tuple[Method, tuple[str, ...]]], configs: Mapping[Method, TrainingConfig]
) -> Iterator[str]:
    """Describe each point of a grid: its batch plans, or why it is skipped."""
    for method, reasons in points:
        if reasons:
            yield f"skip  {method.label}: {'; '.join(reasons)}"
            continue
        plans = configs[method].plans()
        largest, smallest = plans[-1], plans[0]
        yield (
            f"run   {method.label}: global batch {smallest.global_batch_size} = "
            f"{smallest.world_size} GPU{'s' * (smallest.world_size > 1)} x micro-batch x "
            f"accumulation, from 1 x {smallest.gradient_accumulation_steps} to "
            f"{largest.micro_batch_size} x {largest.gradient_accumulation_steps} "
            f"({len(plans)} plans)"
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
