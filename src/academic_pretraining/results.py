"""All measurements in one polars frame, and the fastest row."""

from collections.abc import Collection, Iterable
from dataclasses import asdict
from typing import Any

import polars as pl

from academic_pretraining.analytic import SECONDS_PER_DAY
from academic_pretraining.errors import NoResultsError
from academic_pretraining.gpus import Hardware
from academic_pretraining.identity import has_current_arguments
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.numerics import REFERENCE
from academic_pretraining.rows import ORDER, row_of

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
        "step_half_width": pl.Float64,
        "step_spread": pl.Float64,
        "micro_step_seconds": pl.Float64,
        "mfu": pl.Float64,
        "mfu_of": pl.String,
        "ceiling_share": pl.Float64,
        "numerics": pl.String,
        "peak_memory_gib": pl.Float64,
        "compile": pl.String,
        "kernels": pl.String,
        "model_flops_per_step": pl.Float64,
        "ceiling_flops": pl.Float64,
        "data_share": pl.Float64,
        "optimizer_share": pl.Float64,
        "communication_share": pl.Float64,
        "other_cpu_share": pl.Float64,
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
        "unlimited": pl.Boolean,
        "limits": pl.String,
        "company": pl.String,
        "alone": pl.Boolean,
        "current_arguments": pl.Boolean,
    }
)

_WHERE = ["num_nodes", "gpus_per_node", "gpu_type", "model"]
SETTING = [
    *_WHERE,
    "free_lunch",
    "activation_checkpointing",
    "sharding",
    "offloading",
]
"""Columns that name a setting."""

CURRENT = ["current_recipe", "current_arguments"]
"""Columns that say whether a result is one of this version of the toolkit."""

_BEST_LAST = ("current_libraries", *ORDER)
# Of rows sorted by that, the one of each setting that stands for it.
_counts = pl.struct(*SETTING, *CURRENT).is_last_distinct()

training_days = (pl.col("step_seconds") * pl.col("max_steps") / SECONDS_PER_DAY).alias(
    "training_days"
)
"""Days of optimizer steps alone: no evaluation, no checkpoints, no restarts."""

# Half the width of a 95% interval: what the repeated steps leave open, and what the fit of short
# runs may miss. The largest error against real steps on the same device was 1.4%, and of two
# devices of one type 3%; ZeRO-3 was off by 7 to 16% while its hooks kept the GPU waiting, and has
# been verified on one GPU only since (artifacts/README.md).
_MODEL_ERROR = pl.when(pl.col("sharding") == Sharding.ZERO_3).then(0.15).otherwise(0.02)
_half_width = ((pl.col("step_half_width") / pl.col("step_seconds")) ** 2 + _MODEL_ERROR**2).sqrt()

training_days_low = (training_days * (1 - _half_width).clip(0)).alias("training_days_low")
training_days_high = (training_days * (1 + _half_width)).alias("training_days_high")
"""A 95% interval of `training_days`, on the device that was measured."""

units_per_second = (
    # As floats, for integers of a damaged record would wrap around.
    pl.col("global_batch_size").cast(pl.Float64)
    * pl.col("units_per_example")
    / pl.col("step_seconds")
).alias("units_per_second")
"""Tokens or images per second over all GPUs."""


def frame(records: Iterable[dict[str, Any]], also: Collection[str] = ()) -> pl.DataFrame:
    """Gather records in one frame, the best of each setting, with training_days.

    That is the newest, but one of a search that the user did not limit stands before those of
    limited ones (`unlimited`), one without `company` before others (`alone`), and current versions
    before all.
    `current_recipe` says whether the recipe is that of this version of the toolkit, and
    `current_arguments` whether the training arguments are those that it exports; a result of
    others never stands in for them, nor wins. `current_libraries` says likewise whether the
    versions of `LIBRARIES` and of the model's kernels are those of the newest result for the same
    model and hardware.

    Args:
        records: of any models and hardware.
        also: keys of records that have a row even where another one stands before them.
    """
    records = list(records)
    rows = pl.DataFrame([_row(record) for record in records], schema=SCHEMA)
    wanted = pl.Series("also", [record.get("key") in also for record in records], pl.Boolean)
    return (
        rows.with_columns(wanted)
        .sort("measured_at")
        .with_columns(
            (pl.col("libraries") == pl.col("libraries").last().over(_WHERE)).alias(
                "current_libraries"
            )
        )
        .sort(*_BEST_LAST, maintain_order=True)
        .filter(_counts | pl.col("also"))
        .drop("also")
        .sort("measured_at", maintain_order=True)
        .with_columns(training_days, training_days_low, training_days_high, units_per_second)
    )


def _row(record: dict[str, Any]) -> dict[str, Any]:
    row = row_of(record)
    return row | {"current_arguments": row["current_recipe"] and has_current_arguments(record)}


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
    return _ranked(results, hardware, model, same_numerics).head(1)


def leaders(
    results: pl.DataFrame, hardware: Hardware, model: str, *, same_numerics: bool = False
) -> pl.DataFrame:
    """Find the fastest setting, and after it those that may be as fast.

    Their training times are apart by less than the 95% interval of that difference. Arguments and
    errors are those of `fastest`.
    """
    rows = _ranked(results, hardware, model, same_numerics)
    half = pl.col("training_days_high") - pl.col("training_days")
    apart = pl.col("training_days") - pl.col("training_days").first()
    return rows.filter(apart <= (half**2 + half.first() ** 2).sqrt())


def _ranked(
    results: pl.DataFrame, hardware: Hardware, model: str, same_numerics: bool
) -> pl.DataFrame:
    """Sort the settings that may be chosen, the fastest first; of each the result that counts."""
    # Of each setting `frame` may have been asked for further ones.
    rows = select(results, hardware, model).filter(*CURRENT)
    rows = rows.sort(*_BEST_LAST, maintain_order=True).filter(_counts, outcome="measured")
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
    if rows.is_empty():
        raise NoResultsError(
            f"no result yet for {model} on {hardware.num_nodes} x {hardware.gpus_per_node} "
            f"{hardware.gpu_type}: run scripts/benchmark.py with the same flags first"
        )
    return rows.sort("training_days", maintain_order=True)


def of_method(results: pl.DataFrame, method: Method) -> pl.DataFrame:
    """Keep the results of one method."""
    return results.filter(**asdict(method) | {"sharding": method.sharding.value})


def method_of(row: dict[str, Any]) -> Method:
    """Read the method of a row."""
    return Method(
        free_lunch=row["free_lunch"],
        activation_checkpointing=row["activation_checkpointing"],
        sharding=Sharding(row["sharding"]),
        offloading=row["offloading"],
    )
