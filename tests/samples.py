"""One invented measurement, for tests to change and to keep, and what an allocator says."""

import dataclasses
import json
from typing import Any

from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import MODELS
from academic_pretraining.records import Measurement, Timing, to_record
from experiments.identity import cache_key

ONE = Hardware(num_nodes=1, gpus_per_node=1, gpu_type="h200")
TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")
FREE_LUNCH = Method(free_lunch=True)

TIMING = Timing(
    micro_batch_size=16,
    gradient_accumulation_steps=32,
    global_batch_size=1024,
    step_seconds=2.5,
    step_seconds_standard_error=0.01,
    step_degrees_of_freedom=3,
    step_spread=0.02,
    micro_step_seconds=0.07,
    overhead_seconds=0.26,
    samples=((4, 0.54), (8, 0.82)),
    skipped_steps=0,
    peak_bytes=3 * 2**30,
    reserved_bytes=4 * 2**30,
    compiled=False,
    compiled_graphs=1,
    mfu=0.4,
    data_share=0.01,
    optimizer_share=0.03,
    communication_share=0.05,
    other_cpu_share=0.02,
)
MEASURED = Measurement(
    outcome="measured",
    best=TIMING,
    timings=(TIMING,),
    memory_ramp=((1, 2**30), (2, 2**31)),
    compile="on",
    compile_error="",
    out_of_memory_micro_batch_size=64,
    out_of_memory_requested_bytes=2**31,
    out_of_memory_free_bytes=2**30,
    kernels="none",
    model_flops_per_example=10**12,
    ceiling_flops=8e14,
    device_name="NVIDIA H200",
    device_bytes=140 * 2**30,
    seconds={"launch": 3.0, "all": 90.0},
    sessions=1,
    restart_seconds=40.0,
    save_seconds=5.0,
    checkpoint_bytes=2 * 2**30,
    save_peak_bytes=2**30,
)
OUT_OF_MEMORY = dataclasses.replace(
    MEASURED, outcome="out of memory", best=None, timings=(), compile="off"
)

# As c10/cuda/CUDACachingAllocator.cpp writes it.
ALLOCATOR = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.81 GiB of "
    "which 1.31 GiB is free. Including non-PyTorch memory, this process has 138.49 GiB memory in "
    "use. Of the allocated memory 136.93 GiB is allocated by PyTorch, and 72.13 MiB is reserved by "
    "PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation "
    "for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html)"
)


def kept_record(
    method: Method = FREE_LUNCH,
    measurement: Measurement = MEASURED,
    *,
    seconds: float | None = None,
    model: str = "pythia-160m",
    hardware: Hardware = TWO,
    at: float = 0.0,
    versions: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write a record, and read it back as a workspace does."""
    if seconds is not None:
        best = dataclasses.replace(TIMING, step_seconds=seconds)
        measurement = dataclasses.replace(measurement, best=best)
    config = TrainingConfig(hardware=hardware, recipe=MODELS[model], method=method)
    versions = {"torch": "2.13.0"} if versions is None else versions
    record = to_record(config, measurement, versions=versions, measured_at=at)
    return json.loads(json.dumps(record | {"key": cache_key(config)}))
