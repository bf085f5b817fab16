"""A record as a flat row, as the frame of all results holds it."""

from collections.abc import Iterable
from typing import Any

from academic_pretraining.gpus import GPUS, GpuType
from academic_pretraining.identity import LIBRARIES, is_current
from academic_pretraining.intervals import half_width
from academic_pretraining.methods import Sharding
from academic_pretraining.models.recipe import Precision
from academic_pretraining.numerics import numerics

# Of freedom, of three steps of one length, where none overflows. Older records do not say how many.
_FEWEST_DEGREES = 2

ORDER = ("unlimited", "alone", "measured_at")
"""Columns of `row_of` by which a setting's records are sorted, the best one last."""


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
