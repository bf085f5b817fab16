"""One invented measurement, for tests to change, and what an allocator says."""

import dataclasses

from academic_pretraining.records import Measurement, Timing

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
