"""One measurement, and how it is kept: as a record of JSON types."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from academic_pretraining.config import TrainingConfig, config_from_dict, config_to_dict
from academic_pretraining.gpus import Hardware

# Of seconds, bytes, FLOPs or anything: more is a fault, and sums of it would overflow.
LARGEST_FIGURE = 1e30

RECORD_VERSION = 1

GIVEN_UP = ("failed", "slower", "too large")
"""States of compilation in which a setting trains without: it failed, took longer, did not fit."""


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
