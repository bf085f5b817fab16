"""One measurement as a record of JSON types, and as a flat row."""

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from academic_pretraining.config import (
    TrainingConfig,
    config_from_dict,
    config_to_dict,
    recipe_to_dict,
)
from academic_pretraining.errors import AcademicPretrainingError
from academic_pretraining.gpus import GPUS, GpuType, Hardware
from academic_pretraining.intervals import half_width
from academic_pretraining.methods import Backend, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import Precision, without_prose
from academic_pretraining.numerics import numerics
from academic_pretraining.training_arguments import training_arguments_fields

# Of seconds, bytes, FLOPs or anything: more is a fault, and sums of it would overflow.
LARGEST_FIGURE = 1e30

RECORD_VERSION = 1

# Of freedom, of three steps of one length, where none overflows. Older records do not say how many.
_FEWEST_DEGREES = 2
_STAGE = "ConvNextStage"

GIVEN_UP = ("failed", "slower", "too large")
"""States of compilation in which a setting trains without: it failed, took longer, did not fit."""

ORDER = ("unlimited", "alone", "measured_at")
"""Columns of `row_of` by which a setting's records are sorted, the best one last."""

LIBRARIES = ("torch", "transformers", "accelerate", "deepspeed")
"""Distributions whose versions decide every measurement; a model's kernels come on top."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One timed micro-batch size.

    Attributes:
        micro_batch_size, gradient_accumulation_steps, global_batch_size: the plan it stands for.
        step_seconds: predicted optimizer step of that plan, at the slowest rank.
        step_seconds_standard_error: of that prediction.
        step_degrees_of_freedom: of its noise, as in `half_width`; `None` in older records.
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
        communication_share: GPU time of NCCL's kernels over the step's, also where computation
            hides it; 0 on one GPU, `None` on CPUs or where it was not seen.
        other_cpu_share: of the host's cores, what other processes kept busy meanwhile; `None`
            where nobody looked, as in older records and under a quota.
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
    communication_share: float | None = None
    other_cpu_share: float | None = None
    step_degrees_of_freedom: int | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All that was learnt about one configuration.

    Attributes:
        outcome: `measured` or `out of memory`.
        best: the fastest timing.
        timings: all of them.
        memory_ramp: (micro-batch size, peak bytes), without compilation.
        compile: `on`, `off`, `no graph`, or one of `GIVEN_UP`.
        compile_error: why it failed.
        out_of_memory_micro_batch_size: the last one that did not fit.
        out_of_memory_requested_bytes, out_of_memory_free_bytes: of the allocation that failed.
        out_of_memory_cause: what PyTorch, cuBLAS, NCCL or the driver said of it.
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
        communication_error: why communication could not be looked at.
        company: who else was on the GPUs, where the user allowed it.
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
    communication_error: str = ""
    out_of_memory_cause: str = ""
    company: str = ""


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


def about(
    records: Iterable[dict[str, Any]], hardware: Hardware, model: str
) -> list[dict[str, Any]]:
    """Keep the records of one hardware and model."""
    where = asdict(hardware)
    return [
        record
        for record in records
        if record["config"]["hardware"] == where and record["config"]["recipe"]["name"] == model
    ]


def row_of(record: dict[str, Any]) -> dict[str, Any]:
    """Lay a record out flat, as `results.SCHEMA` names it.

    Raises:
        KeyError, TypeError, AttributeError, ArithmeticError: something is missing or of no use.
    """
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
        "step_half_width": _half_width(best) if best else None,
        "step_spread": best.get("step_spread"),
        "micro_step_seconds": best.get("micro_step_seconds"),
        "mfu": best.get("mfu"),
        "mfu_of": _peak(record["config"]),
        "ceiling_share": rate / ceiling if rate and ceiling else None,
        "numerics": _numerics(record["config"]),
        "peak_memory_gib": _gib(best.get("peak_bytes")),
        "compile": measured["compile"],
        "kernels": measured["kernels"],
        "model_flops_per_step": flops,
        "ceiling_flops": ceiling,
        "data_share": best.get("data_share"),
        "optimizer_share": best.get("optimizer_share"),
        "communication_share": best.get("communication_share"),
        "other_cpu_share": best.get("other_cpu_share"),
        "missing_gib": _gib(missing) if not best else None,
        "restart_seconds": measured.get("restart_seconds"),
        "save_seconds": measured.get("save_seconds"),
        "checkpoint_gib": _gib(measured.get("checkpoint_bytes")),
        "save_peak_gib": _gib(measured.get("save_peak_bytes")),
        "device_name": measured["device_name"],
        "wall_seconds": measured["seconds"]["all"],
        "torch": record["versions"].get("torch"),
        "libraries": _libraries(record["versions"], recipe.get("kernel_packages") or ()),
        "measured_at": record["measured_at"],
        "current_recipe": is_current(recipe),
        "unlimited": not record.get("limits"),
        "limits": ", ".join(f"--{name.replace('_', '-')}" for name in record.get("limits") or {}),
        "company": measured.get("company") or "",
        "alone": not measured.get("company"),
    }


def _libraries(versions: dict[str, str], kernels: Iterable[str]) -> str:
    names = (*LIBRARIES, *kernels)
    return ", ".join(f"{name} {versions[name]}" for name in names if name in versions)


def _half_width(best: dict[str, Any]) -> float:
    freedom = best.get("step_degrees_of_freedom")
    return half_width(
        best["step_seconds_standard_error"], _FEWEST_DEGREES if freedom is None else freedom
    )


def _gib(count: int | None) -> float | None:
    return count / 2**30 if count is not None else None


def _arithmetic(config: dict[str, Any]) -> tuple[GpuType, Precision, bool]:
    """Give the GPU, the precision and whether fp32 products may run as TF32."""
    gpu = GPUS[config["hardware"]["gpu_type"]]
    precision = Precision.FP32 if gpu.is_cpu else Precision(config["recipe"]["precision"])
    return gpu, precision, config["method"]["free_lunch"] and gpu.supports_tf32


def _numerics(config: dict[str, Any]) -> str:
    _, precision, tf32 = _arithmetic(config)
    return numerics(Sharding(config["method"]["sharding"]), precision, tf32=tf32)


def _peak(config: dict[str, Any]) -> str | None:
    gpu, precision, tf32 = _arithmetic(config)
    peak = gpu.peak_flops(precision, tf32)
    kind = "TF32" if precision is Precision.FP32 and tf32 else precision
    return f"{peak / 1e12:,.4g} TFLOP/s ({kind})" if peak is not None else None


def is_current(recipe: dict[str, Any]) -> bool:
    """Whether a record's recipe, prose apart, is the one in `MODELS`."""
    return recipe["name"] in MODELS and without_prose(recipe) == _current(recipe["name"])


def identity_of(config: TrainingConfig) -> dict[str, Any]:
    """Say what is measured, as a record's key does beside versions and limits.

    Recipe, method, hardware and resolved arguments count; prose does not, nor does a tolerance
    beside the global batch that it led to.
    """
    identity = config_to_dict(config)
    del identity["batch_tolerance"]
    identity["global_batch_size"] = config.global_batch_size
    identity["recipe"] = without_prose(identity["recipe"])
    identity["arguments"] = training_arguments_fields(config, config.plan_at(1))
    if len(config.compile_choices) > 1:
        identity["compile"] = config.compile_choices
    if config.compiles_layers_apart:
        # Not in the arguments; before, what is recomputed within hooks was not compiled.
        identity["recomputed_layers"] = "compiled"
    if config.method.sharding.backend is Backend.FSDP and config.recipe.layer_class == _STAGE:
        # Before, the first stage alone was sharded apart.
        identity["sharded_stages"] = "all"
    return identity


def has_current_arguments(record: dict[str, Any]) -> bool:
    """Whether a record's key holds the training arguments that would be exported now.

    What else identifies a measurement counts as well, such as how it is compiled; versions and
    limits do not.
    """
    try:
        key = json.loads(record["key"])
        for name in ("versions", "limits"):
            key.pop(name, None)
        # As a key holds them: lists for tuples.
        return key == json.loads(json.dumps(identity_of(config_of(record))))
    except (
        *(KeyError, TypeError, AttributeError, ValueError, RecursionError),
        AcademicPretrainingError,
    ):
        return False


@functools.cache
def _current(model: str) -> dict[str, Any]:
    # As a record holds it: lists for tuples.
    return json.loads(json.dumps(without_prose(recipe_to_dict(MODELS[model]))))
