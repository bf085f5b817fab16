"""Results as tables that people read; whatever the width, no figure is cut off."""

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from academic_pretraining.analytic import hardware_flops
from academic_pretraining.errors import one_line
from academic_pretraining.results import CURRENT, method_of
from experiments.report import seconds

# A method's name takes three lines then, rather than four or more.
_METHOD_WIDTH = 18


def print_results(rows: pl.DataFrame, width: int | None, *, detail: bool = False) -> None:
    """Print the results for one model and hardware, fastest first.

    Args:
        rows: of `results.frame`, one at least.
        width: of the terminal; `None` for tables as wide as they are.
        detail: whether to print also where the FLOPs and the time of a step go.
    """
    # What a result says is shown as it stands. Tables are as wide as they are laid out: a console
    # of less would cut their cells.
    console = Console(width=10_000, markup=False, emoji=False, highlight=False)
    rows = rows.sort("step_seconds", nulls_last=True)
    for table in _tables(_title(rows), _result_columns(rows), width):
        console.print(table)
    _say(console, _peaks(rows), width)
    measured = rows.filter(outcome="measured")
    if detail and not measured.is_empty():
        columns = _detail_columns(measured)
        title = "Of one optimizer step"
        *others, flops = columns
        if len(set(flops.cells)) == 1:
            title, columns = f"{title} ({flops.cells[0]} {flops.name})", others
        for table in _tables(title, columns, width):
            console.print(table)
        for line in (
            "communication: time of the GPUs' exchange, also where computation hides it",
            "others: of the host's cores, what other processes kept busy meanwhile",
            "checkpoint: how long writing one takes, and GPU memory at its height",
        ):
            _say(console, line, width)


def faster_with_limits(rows: pl.DataFrame) -> Iterator[str]:
    """Say which results with limits are faster than the one without, that is chosen from."""
    current = rows.filter(*CURRENT, "current_libraries")
    whole = {method_of(row): row for row in current.filter(limits="").iter_rows(named=True)}
    limited = current.filter(pl.col("limits") != "", outcome="measured").sort("step_seconds")
    for row in limited.iter_rows(named=True):
        other = whole.get(method := method_of(row))
        if other is None or (other["step_seconds"] or math.inf) <= row["step_seconds"]:
            continue
        without = seconds(other["step_seconds"]) if other["step_seconds"] else other["outcome"]
        yield (
            f"{method.label}: {seconds(row['step_seconds'])} a step with {row['limits']}, "
            f"{without} without, by which settings are chosen"
        )


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One column; its cells are figures, of which none is divided, or words."""

    name: str
    cells: list[str]
    words: bool = False

    @property
    def least(self) -> int:
        """The width that it needs; its name takes two lines at most."""
        parts = [word for cell in self.cells for word in cell.split()] if self.words else self.cells
        widths = itertools.count(max(map(len, (*self.name.split(), *parts))))
        return next(width for width in widths if len(textwrap.wrap(self.name, width)) <= 2)

    @property
    def most(self) -> int:
        """The width at which nothing takes a second line."""
        return max(map(len, [self.name, *self.cells]))


def _tables(title: str, columns: list[_Column], width: int | None) -> Iterator[Table]:
    """Lay columns out side by side; those for which there is no room follow in another table.

    Each has the first column, which says what a row is about.
    """
    first, *left = columns
    comfortable = max(first.least, min(first.most, _METHOD_WIDTH))
    while left:
        taken = [first]
        needed = 4 + comfortable
        while left and (len(taken) == 1 or width is None or needed + 3 + left[0].least <= width):
            needed += 3 + left[0].least
            taken.append(left.pop(0))
        room = math.inf if width is None else max(0, width - needed)
        # Of words alone it would not be seen where a row ends.
        lines = all(column.words for column in taken)
        table = Table(title=title, title_justify="left", show_lines=lines)
        for column in taken:
            least = comfortable if column is first else column.least
            # A name gains by standing in one line, and by nothing less.
            most = column.most if column.words or room >= column.most - least else least
            wide = int(min(most, least + room))
            room -= wide - least
            justify = "left" if column.words else "right"
            table.add_column(column.name, justify=justify, width=wide, overflow="fold")
        for cells in zip(*(column.cells for column in taken), strict=True):
            table.add_row(*cells)
        yield table
        title = "Their other figures"


def _title(rows: pl.DataFrame) -> str:
    row = rows.row(0, named=True)
    nodes = f"{row['num_nodes']} x " if row["num_nodes"] > 1 else ""
    hardware = f"{nodes}{row['gpus_per_node']} x {row['gpu_type']}"
    return f"{row['model']} on {hardware}, fastest first"


def _result_columns(rows: pl.DataFrame) -> list[_Column]:
    """Give what is asked for most first."""
    found = rows.to_dicts()
    current = next((row["libraries"] for row in found if row["current_libraries"]), "")
    unit = "tokens/s" if found[0]["units_per_example"] > 1 else "images/s"
    # Others may have written it.
    columns = {"method": [one_line(_method(row, current)) for row in found]}
    for row in found:
        for name, cell in _figures(row, unit).items():
            columns.setdefault(name, []).append(cell)
    words = ("method", "compile", "numerics")
    return [_Column(name=name, cells=c, words=name in words) for name, c in columns.items()]


def _method(row: dict[str, Any], current: str) -> str:
    """Name a row's method, and what sets its result apart from others."""
    said = method_of(row).label
    if not row["current_recipe"]:
        said += " (an older recipe)"
    elif not row["current_arguments"]:
        said += " (other training arguments)"
    if not row["current_libraries"]:
        known = current.split(", ")
        other = ", ".join(part for part in row["libraries"].split(", ") if part not in known)
        said += f" ({other or 'other libraries'})"
    if row["limits"]:
        said += f" (with {row['limits']})"
    if row["company"]:
        said += " (beside others on the GPUs)"
    if row["outcome"] != "measured":
        missing = row["missing_gib"]
        said += f": {row['outcome']}"
        said += f", {missing:.2f} GiB short" if missing is not None else ""
    return said


def _figures(row: dict[str, Any], unit: str) -> dict[str, str]:
    figures = dict.fromkeys(
        ("training days", "step", "micro-batch x accumulation", "peak memory", "MFU", unit), "-"
    )
    if row["outcome"] == "measured":
        figures = {
            "training days": days(row),
            "step": f"{seconds(row['step_seconds'])} \u00b1 {100 * row['step_spread']:.1f}%",
            "micro-batch x accumulation": f"{row['micro_batch_size']} x {row['grad_acc_steps']}",
            "peak memory": f"{row['peak_memory_gib']:.1f} GiB",
            "MFU": _percent(row["mfu"]),
            unit: f"{row['units_per_second']:,.0f}",
        }
    numerics = row["numerics"] if row["outcome"] == "measured" else "-"
    return figures | {"compile": one_line(row["compile"]), "numerics": numerics}


def _peaks(rows: pl.DataFrame) -> str:
    """Say what each MFU is a share of, where that is not the same for all; else nothing."""
    peaks: dict[str, list[str]] = {}
    for row in rows.iter_rows(named=True):
        if row["mfu"] is not None and row["mfu_of"]:
            peaks.setdefault(row["mfu_of"], []).append(method_of(row).label)
    if len(peaks) < 2:
        return ""
    most, _ = Counter({peak: len(methods) for peak, methods in peaks.items()}).most_common(1)[0]
    others = (f"{peak} for {' and '.join(peaks[peak])}" for peak in peaks if peak != most)
    return f"MFU: of {most}, but of {', of '.join(others)}"


def _detail_columns(rows: pl.DataFrame) -> list[_Column]:
    columns: dict[str, list[str]] = {}
    for row in rows.iter_rows(named=True):
        flops, ceiling = row["model_flops_per_step"], row["ceiling_flops"]
        run = hardware_flops(flops, activation_checkpointing=row["activation_checkpointing"])
        for name, cell in {
            "method": method_of(row).label,
            "of datasheet": _percent(row["mfu"]),
            "of ceiling": _percent(row["ceiling_share"]),
            "data": _percent(row["data_share"]),
            "communication": _percent(row["communication_share"]),
            "optimizer": _percent(row["optimizer_share"]),
            "others": _percent(row["other_cpu_share"]),
            "checkpoint": _checkpoint(row),
            "ceiling": f"{ceiling / 1e12:,.4g} TFLOP/s" if ceiling is not None else "-",
            "hardware FLOPs": f"{run:.3g}",
            "model FLOPs": f"{flops:.3g}",
        }.items():
            columns.setdefault(name, []).append(cell)
    return [_Column(name=name, cells=c, words=name == "method") for name, c in columns.items()]


def days(row: dict[str, Any]) -> str:
    """Write the days of a training with their 95% interval."""
    # Up, for below it ends at 0.
    half = row["training_days_high"] - row["training_days"]
    digits = max(1, -math.floor(math.log10(half))) if 0 < half < 1 else 1
    return f"{row['training_days']:,.{digits}f} \u00b1 {half:,.{digits}f}"


def _checkpoint(row: dict[str, Any]) -> str:
    if row["save_seconds"] is None:
        return "-"
    memory = f", {row['save_peak_gib']:.1f} GiB" if row["save_peak_gib"] else ""
    return f"{seconds(row['save_seconds'])}{memory}"


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f}%" if share is not None else "-"


def _say(console: Console, text: str, width: int | None) -> None:
    if text:
        console.print(textwrap.fill(text, width) if width else text)
