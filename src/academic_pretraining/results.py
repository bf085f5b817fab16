"""Measurements as data: records, one polars frame over them, and the fastest row."""

import functools
import json
import types
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import polars as pl

from academic_pretraining.analytic import SECONDS_PER_DAY
from academic_pretraining.config import (
    TrainingConfig,
    config_from_dict,
    config_to_dict,
    recipe_to_dict,
)
from academic_pretraining.errors import NoResultsError
from academic_pretraining.gpus import GPUS, Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import Precision, without_prose
from academic_pretraining.numerics import REFERENCE, numerics

RECORD_VERSION = 1

LIBRARIES = ("torch", "transformers", "accelerate", "deepspeed")
"""Distributions whose versions decide every measurement."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One timed micro-batch size.

    Attributes:
        micro_batch_size, gradient_accumulation_steps, global_batch_size: the plan it stands for.
        step_seconds: predicted optimizer step of that plan, at the slowest rank.
        step_seconds_standard_error: of that prediction.
        step_spread: standard deviation of repeated steps over their mean.
        micro_step_seconds, overhead_seconds: a and b of step = a x accumulation + b.
        samples: (accumulation, seconds) of each timed step.
        skipped_steps: of them, with an fp16 overflow.
        peak_bytes: predicted peak of allocated device memory at that plan.
        reserved_bytes: likewise, of what the allocator holds.
        compiled: whether `torch.compile` was asked for.
        compiled_graphs: graphs that it made.
        mfu: model FLOPs utilisation; `None` without a datasheet.
        data_share: of the step's time, fetching data before the first micro-batch runs.
        optimizer_share: of the step's time, the optimizer; `None` under DeepSpeed, which steps
            inside the backward pass.
    """

    micro_batch_size: int
    gradient_accumulation_steps: int
    global_batch_size: int
    step_seconds: float
    step_seconds_standard_error: float
    step_spread: float
    micro_step_seconds: float
    overhead_seconds: float
    samples: tuple[tuple[int, float], ...]
    skipped_steps: int
    peak_bytes: int
    reserved_bytes: int
    compiled: bool
    compiled_graphs: int
    mfu: float | None
    data_share: float
    optimizer_share: float | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All that was learnt about one configuration.

    Attributes:
        outcome: `measured` or `out of memory`.
        best: the fastest timing.
        timings: all of them.
        memory_ramp: (micro-batch size, peak bytes), without compilation.
        compile: `on`, `off`, `failed` or `no graph`.
        compile_error: why it failed.
        out_of_memory_micro_batch_size: the last one that did not fit.
        out_of_memory_requested_bytes, out_of_memory_free_bytes: of the allocation that failed.
        kernels: the model's own kernels in force.
        model_flops_per_example: one forward and backward pass.
        ceiling_flops: what matrix products alone reached on the slowest device, FLOP/s.
        device_name: the driver's.
        device_bytes: memory of the device.
        seconds: wall time by phase, and `all`.
        sessions: launches that it took.
        restart_seconds: launch, building and first step, compilation included; `None` if nothing
            fitted.
        save_seconds: writing a checkpoint; `None` where that was not measured.
        checkpoint_bytes, save_peak_bytes: its size, and the largest device memory meanwhile.
        save_error: why it could not be written.
    """

    outcome: str
    best: Timing | None
    timings: tuple[Timing, ...]
    memory_ramp: tuple[tuple[int, int], ...]
    compile: str
    compile_error: str
    out_of_memory_micro_batch_size: int | None
    out_of_memory_requested_bytes: int | None
    out_of_memory_free_bytes: int | None
    kernels: str
    model_flops_per_example: int
    ceiling_flops: float
    device_name: str
    device_bytes: int
    seconds: dict[str, float]
    sessions: int
    restart_seconds: float | None = None
    save_seconds: float | None = None
    checkpoint_bytes: int | None = None
    save_peak_bytes: int | None = None
    save_error: str = ""


SCHEMA = pl.Schema(
    {
        "num_nodes": pl.Int64,
        "gpus_per_node": pl.Int64,
        "gpu_type": pl.String,
        "model": pl.String,
        "free_lunch": pl.Boolean,
        "activation_checkpointing": pl.Boolean,
        "sharding": pl.String,
        "offloading": pl.Boolean,
        "outcome": pl.String,
        "micro_batch_size": pl.Int64,
        "grad_acc_steps": pl.Int64,
        "global_batch_size": pl.Int64,
        "max_steps": pl.Int64,
        "units_per_example": pl.Int64,
        "step_seconds": pl.Float64,
        "step_standard_error": pl.Float64,
        "step_spread": pl.Float64,
        "micro_step_seconds": pl.Float64,
        "mfu": pl.Float64,
        "ceiling_share": pl.Float64,
        "numerics": pl.String,
        "peak_memory_gib": pl.Float64,
        "compile": pl.String,
        "kernels": pl.String,
        "model_flops_per_step": pl.Float64,
        "ceiling_flops": pl.Float64,
        "data_share": pl.Float64,
        "optimizer_share": pl.Float64,
        "missing_gib": pl.Float64,
        "restart_seconds": pl.Float64,
        "save_seconds": pl.Float64,
        "checkpoint_gib": pl.Float64,
        "save_peak_gib": pl.Float64,
        "device_name": pl.String,
        "wall_seconds": pl.Float64,
        "torch": pl.String,
        "libraries": pl.String,
        "measured_at": pl.Float64,
        "current_recipe": pl.Boolean,
    }
)

_WHERE = ["num_nodes", "gpus_per_node", "gpu_type", "model"]
_SETTING = [
    *_WHERE,
    "free_lunch",
    "activation_checkpointing",
    "sharding",
    "offloading",
]

training_days = (pl.col("step_seconds") * pl.col("max_steps") / SECONDS_PER_DAY).alias(
    "training_days"
)
"""Days of optimizer steps alone: no evaluation, no checkpoints, no restarts."""

# Half the width of a 95% interval: what the repeated steps leave open, and what the fit of short
# runs may miss. The largest error against real steps on the same device was 1.03%
# (artifacts/README.md); two devices of one type differed by up to 3%.
_MODEL_ERROR = 0.02
_half_width = (
    (1.96 * pl.col("step_standard_error") / pl.col("step_seconds")) ** 2 + _MODEL_ERROR**2
).sqrt()

training_days_low = (training_days * (1 - _half_width)).alias("training_days_low")
training_days_high = (training_days * (1 + _half_width)).alias("training_days_high")
"""A 95% interval of `training_days`, on the device that was measured."""

units_per_second = (
    pl.col("global_batch_size") * pl.col("units_per_example") / pl.col("step_seconds")
).alias("units_per_second")
"""Tokens or images per second over all GPUs."""


def to_record(
    config: TrainingConfig,
    measurement: Measurement,
    *,
    versions: dict[str, str],
    measured_at: float,
) -> dict[str, Any]:
    """Write a measurement as JSON types.

    Args:
        config: what was measured.
        measurement: what came out.
        versions: of the libraries, by distribution.
        measured_at: seconds since the epoch.
    """
    return {
        "version": RECORD_VERSION,
        "config": config_to_dict(config),
        "measurement": asdict(measurement),
        "versions": versions,
        "measured_at": measured_at,
    }


def config_of(record: dict[str, Any]) -> TrainingConfig:
    """Read the configuration of a record; works on any machine.

    Raises:
        ValueError: it holds none.
        AcademicPretrainingError: one that is not valid.
    """
    try:
        return config_from_dict(record["config"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"broken record: {type(error).__name__} {error}") from error


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
        row = _row(record)
        pl.DataFrame([row], schema=SCHEMA, strict=True)
        _check_figures(row)
        _check_timings(measured)
    except (
        *(KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError),
        pl.exceptions.PolarsError,
    ) as error:
        raise ValueError(f"broken record: {type(error).__name__} {error}") from error


# More of anything is a fault, and sums of it would overflow.
_MOST = 1e30


def _check_figures(row: dict[str, Any]) -> None:
    for name, value in row.items():
        if isinstance(value, str) and not value.isprintable():
            raise TypeError(f"{name} is no plain text")
        if isinstance(value, int | float) and not 0 <= value < _MOST:
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
    for field in fields(kind):
        of_union = isinstance(field.type, types.UnionType)
        kinds: set[Any] = set(get_args(field.type) if of_union else (field.type,))
        if field.name not in part or not kinds <= {bool, int, float, str, type(None)}:
            continue
        value = part[field.name]
        if type(value) not in kinds | ({int} if float in kinds else set()):
            raise TypeError(f"{field.name} is {value!r:.80}")
        if isinstance(value, int | float) and not -_MOST < value < _MOST:
            raise TypeError(f"{field.name} is out of range")


def _check_timings(measured: dict[str, Any]) -> None:
    """Look at what becomes a prediction."""
    for timing in measured["timings"]:
        _check_kinds(Timing, timing)
        if not timing["step_seconds"] > 0 < timing["peak_bytes"]:
            raise TypeError("a timing without time or memory")
        for name in ("step_seconds_standard_error", "mfu", "compiled"):
            timing[name]
        for name in ("micro_batch_size", "gradient_accumulation_steps"):
            if timing[name] < 1:
                raise TypeError(f"{name} is {timing[name]}")


def frame(records: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Gather records in one frame, the newest of each setting, with training_days.

    `current_recipe` says whether the recipe is that of this version of the toolkit; a result of an
    older one never stands in for it, nor wins. `current_libraries` says likewise whether the
    versions of `LIBRARIES` are those of the newest result for the same model and hardware.
    """
    rows = pl.DataFrame([_row(record) for record in records], schema=SCHEMA)
    return (
        rows.sort("measured_at")
        .unique([*_SETTING, "current_recipe"], keep="last", maintain_order=True)
        .with_columns(
            (pl.col("libraries") == pl.col("libraries").last().over(_WHERE)).alias(
                "current_libraries"
            )
        )
        .with_columns(training_days, training_days_low, training_days_high, units_per_second)
    )


def select(results: pl.DataFrame, hardware: Hardware, model: str) -> pl.DataFrame:
    """Keep the rows of one hardware and model."""
    return results.filter(
        num_nodes=hardware.num_nodes,
        gpus_per_node=hardware.gpus_per_node,
        gpu_type=hardware.gpu_type,
        model=model,
    )


def fastest(
    results: pl.DataFrame, hardware: Hardware, model: str, *, same_numerics: bool = False
) -> pl.DataFrame:
    """Find the setting with the least training time; one row.

    Args:
        results: a frame of records.
        hardware: on which.
        model: what is trained.
        same_numerics: only settings that compute what plain data parallelism computes.

    Raises:
        NoResultsError: nothing was measured for this hardware and model.
    """
    rows = select(results, hardware, model).filter(outcome="measured", current_recipe=True)
    if not rows.is_empty():
        rows = rows.filter(current_libraries=True)
        if rows.is_empty():
            raise NoResultsError(
                f"every result for {model} on this hardware is of other library versions than the "
                "newest one, which did not fit: run scripts/benchmark.py with the same flags"
            )
    if same_numerics and not rows.is_empty():
        rows = rows.filter(numerics=REFERENCE)
        if rows.is_empty():
            raise NoResultsError(
                f"every result for {model} on this hardware has other numerics than plain data "
                "parallelism: leave --numerics out, or measure naive too"
            )
    rows = rows.sort("training_days")
    if rows.is_empty():
        raise NoResultsError(
            f"no result yet for {model} on {hardware.num_nodes} x {hardware.gpus_per_node} "
            f"{hardware.gpu_type}: run scripts/benchmark.py with the same flags first"
        )
    return rows.head(1)


def is_current(recipe: dict[str, Any]) -> bool:
    """Whether a record's recipe, prose apart, is the one in `MODELS`."""
    return recipe["name"] in MODELS and _identity(recipe) == _current(recipe["name"])


@functools.cache
def _current(model: str) -> str:
    return _identity(recipe_to_dict(MODELS[model]))


def _identity(recipe: dict[str, Any]) -> str:
    return json.dumps(without_prose(recipe), sort_keys=True)


def method_of(row: dict[str, Any]) -> Method:
    """Read the method of a row."""
    return Method(
        free_lunch=row["free_lunch"],
        activation_checkpointing=row["activation_checkpointing"],
        sharding=Sharding(row["sharding"]),
        offloading=row["offloading"],
    )


def _row(record: dict[str, Any]) -> dict[str, Any]:
    hardware, recipe = record["config"]["hardware"], record["config"]["recipe"]
    measured = record["measurement"]
    best = measured["best"] or {}
    requested, free = (
        measured["out_of_memory_requested_bytes"],
        measured["out_of_memory_free_bytes"],
    )
    missing = max(0, requested - free) if requested is not None and free is not None else None
    flops = rate = None
    ceiling = measured.get("ceiling_flops")
    if best:
        flops = float(measured["model_flops_per_example"] * best["global_batch_size"])
        rate = flops / best["step_seconds"] / (hardware["num_nodes"] * hardware["gpus_per_node"])
    return {
        **hardware,
        "model": recipe["name"],
        **record["config"]["method"],
        "outcome": measured["outcome"],
        "micro_batch_size": best.get("micro_batch_size"),
        "grad_acc_steps": best.get("gradient_accumulation_steps"),
        "global_batch_size": best.get("global_batch_size"),
        "max_steps": recipe["max_steps"],
        "units_per_example": recipe["sequence_length"] or 1,
        "step_seconds": best.get("step_seconds"),
        "step_standard_error": best.get("step_seconds_standard_error"),
        "step_spread": best.get("step_spread"),
        "micro_step_seconds": best.get("micro_step_seconds"),
        "mfu": best.get("mfu"),
        "ceiling_share": rate / ceiling if rate and ceiling else None,
        "numerics": _numerics(record["config"]),
        "peak_memory_gib": _gib(best.get("peak_bytes")),
        "compile": measured["compile"],
        "kernels": measured["kernels"],
        "model_flops_per_step": flops,
        "ceiling_flops": ceiling,
        "data_share": best.get("data_share"),
        "optimizer_share": best.get("optimizer_share"),
        "missing_gib": _gib(missing) if not best else None,
        "restart_seconds": measured.get("restart_seconds"),
        "save_seconds": measured.get("save_seconds"),
        "checkpoint_gib": _gib(measured.get("checkpoint_bytes")),
        "save_peak_gib": _gib(measured.get("save_peak_bytes")),
        "device_name": measured["device_name"],
        "wall_seconds": measured["seconds"]["all"],
        "torch": record["versions"].get("torch"),
        "libraries": _libraries(record["versions"]),
        "measured_at": record["measured_at"],
        "current_recipe": is_current(recipe),
    }


def _libraries(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions)


def _gib(count: int | None) -> float | None:
    return count / 2**30 if count is not None else None


def _numerics(config: dict[str, Any]) -> str:
    gpu = GPUS[config["hardware"]["gpu_type"]]
    precision = Precision.FP32 if gpu.is_cpu else Precision(config["recipe"]["precision"])
    tf32 = config["method"]["free_lunch"] and gpu.supports_tf32
    return numerics(Sharding(config["method"]["sharding"]), precision, tf32=tf32)
