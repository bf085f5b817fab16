"""Whether a record that somebody else may have written can be used."""

import functools
import types
from dataclasses import fields
from typing import Any, get_args

import polars as pl

from academic_pretraining.errors import ILL_SHAPED
from academic_pretraining.gpus import Hardware
from academic_pretraining.records import LARGEST_FIGURE, Measurement, Timing
from academic_pretraining.results import SCHEMA, SETTING
from academic_pretraining.rows import row_of


def check_record(record: dict[str, Any]) -> None:
    """Find out whether `frame` can take a record.

    Raises:
        ValueError: it lacks something, or something is of another type.
    """
    try:
        measured = record["measurement"]
        _check_kinds(Hardware, record["config"]["hardware"])
        _check_kinds(Measurement, measured)
        _check_kinds(Timing, measured["best"] or {})
        # First, for a row is computed of them.
        _check_timings(measured, record["config"]["hardware"])
        _check_figures(row_of(record))
    except ILL_SHAPED as error:
        raise ValueError(f"broken record: {type(error).__name__} {error}") from error


# What Python has for the kinds of a frame's columns.
_KINDS: dict[Any, tuple[type, ...]] = {
    pl.Int64: (int,),
    pl.Float64: (float, int),
    pl.Boolean: (bool,),
    pl.String: (str,),
}

_OF_COLUMN = {name: _KINDS[kind] for name, kind in SCHEMA.items()}
_MOST_OF_COLUMN = {
    name: 2**63 if kind == pl.Int64 else LARGEST_FIGURE for name, kind in SCHEMA.items()
}


def _check_figures(row: dict[str, Any]) -> None:
    for name in SETTING:
        if row.get(name) is None:
            raise TypeError(f"{name} is missing")
    for name, value in row.items():
        if value is not None and type(value) not in _OF_COLUMN[name]:
            raise TypeError(f"{name} is {value!r:.80}")
        if isinstance(value, str) and not value.isprintable():
            raise TypeError(f"{name} is no plain text")
        if isinstance(value, int | float) and not 0 <= value < _MOST_OF_COLUMN[name]:
            raise TypeError(f"{name} is {value}")
    if row["outcome"] == "measured":
        if not row["step_seconds"] > 0 < row["micro_step_seconds"]:
            raise TypeError("a step that takes no time")
        for name in _NEEDED:
            if row[name] is None:
                raise TypeError(f"{name} is missing")
    elif row["outcome"] != "out of memory" or row["step_seconds"] is not None:
        raise TypeError(f"no outcome is called {row['outcome']!r}")
    for name in _COUNTS:
        if row[name] is not None and row[name] < 1:
            raise TypeError(f"{name} is {row[name]}")


_COUNTS = (
    "num_nodes",
    "gpus_per_node",
    "micro_batch_size",
    "grad_acc_steps",
    "global_batch_size",
    "max_steps",
    "units_per_example",
)
_NEEDED = (*_COUNTS, "step_standard_error", "step_spread", "peak_memory_gib")


def _check_kinds(kind: type[Hardware | Measurement | Timing], part: Any) -> None:
    """Compare the plain fields of a part with a dataclass, before anything is computed of them."""
    for name, kinds in _plain_fields(kind):
        if name not in part:
            continue
        value = part[name]
        if type(value) not in kinds:
            raise TypeError(f"{name} is {value!r:.80}")
        if isinstance(value, int | float) and not -LARGEST_FIGURE < value < LARGEST_FIGURE:
            raise TypeError(f"{name} is out of range")


@functools.cache
def _plain_fields(
    kind: type[Hardware | Measurement | Timing],
) -> tuple[tuple[str, frozenset[type]], ...]:
    found = []
    for field in fields(kind):
        of_union = isinstance(field.type, types.UnionType)
        kinds = frozenset(get_args(field.type) if of_union else (field.type,))
        if kinds <= {bool, int, float, str, type(None)}:
            found.append((field.name, kinds | {int} if float in kinds else kinds))
    return tuple(found)


def _check_timings(measured: dict[str, Any], hardware: dict[str, Any]) -> None:
    """Look at what becomes a prediction."""
    gpus = hardware["num_nodes"] * hardware["gpus_per_node"]
    best = [measured["best"]] if measured["best"] else []
    for timing in [*measured["timings"], *best]:
        _check_kinds(Timing, timing)
        if not timing["step_seconds"] > 0 < timing["peak_bytes"]:
            raise TypeError("a timing without time or memory")
        for name in ("step_seconds_standard_error", "mfu", "compiled"):
            timing[name]
        for name in ("micro_batch_size", "gradient_accumulation_steps"):
            if timing[name] < 1:
                raise TypeError(f"{name} is {timing[name]}")
        freedom = timing.get("step_degrees_of_freedom")
        if freedom is not None and freedom < 0:
            raise TypeError(f"step_degrees_of_freedom is {freedom}")
        batch = gpus * timing["micro_batch_size"] * timing["gradient_accumulation_steps"]
        if timing["global_batch_size"] != batch:
            raise TypeError(f"global_batch_size is {timing['global_batch_size']} of {batch}")
