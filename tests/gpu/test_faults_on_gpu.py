"""Faults that only a real GPU, its allocators, its driver and NCCL can have; `pytest -m gpu`.

All sessions of a module are launched at once: what takes the time is loading libraries. With
FAULTS_CSV set, what became of each fault is added there.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from faulty_ranks import MEMORY, PLAIN, SHARDED, Fault, note
from sessions import see_out

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.launch import Launched
from academic_pretraining.benchmarking.probes import Outcome
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import detect_hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.occupancy import check_idle

pytestmark = pytest.mark.gpu

ZERO = Method(sharding=Sharding.ZERO_2)
# Time for NCCL and the fault; a hang is given no longer.
HASTY = Effort(micro_batch_sizes=(1,), most_timings=1, timing_deadline_seconds=20.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuFault(Fault):
    """A fault on some of so many GPUs."""

    ranks: str = "0"
    gpus: int = 1

    def __str__(self) -> str:
        return f"{self.name} on {self.ranks} of {self.gpus} with {self.method.label}"


def out_of_memory_in(place: str, ranks: str = "1", method: Method = PLAIN) -> GpuFault:
    """Describe a real failure to allocate on some of two GPUs, in the middle of a training."""
    return GpuFault(
        name=f"runs_out_of_memory_in_{place}",
        outcome=Outcome.OUT_OF_MEMORY,
        cause=MEMORY,
        ranks=ranks,
        gpus=2,
        method=method,
    )


FAULTS = [
    GpuFault(name="fills_the_gpu", outcome=Outcome.OUT_OF_MEMORY, cause=MEMORY),
    GpuFault(
        name="starves_cublas",
        outcome=Outcome.OUT_OF_MEMORY,
        cause="RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
    ),
    GpuFault(
        name="starves_nccl",
        outcome=Outcome.OUT_OF_MEMORY,
        cause="DistBackendError: NCCL error in: ",
        ranks="1",
        gpus=2,
    ),
    GpuFault(name="pins_too_much", outcome=Outcome.HOST_OUT_OF_MEMORY, cause="pinned memory: "),
    GpuFault(
        name="trips_an_assertion_on_the_gpu",
        outcome=Outcome.CRASHED,
        cause="AcceleratorError: CUDA error: device-side assert triggered",
    ),
    GpuFault(name="dies_in_training", outcome=Outcome.CRASHED, cause="rank0 was killed"),
    # While the other rank waits for this one, in NCCL.
    out_of_memory_in("forward"),
    out_of_memory_in("forward", "0", SHARDED),
    out_of_memory_in("forward", "0,1"),
    out_of_memory_in("backward"),
    out_of_memory_in("backward", method=ZERO),
    out_of_memory_in("the_optimizer"),
    out_of_memory_in("all_reduce"),
    out_of_memory_in("all_gather", method=SHARDED),
    out_of_memory_in("reduce_scatter", "0", SHARDED),
    GpuFault(
        name="is_killed", outcome=Outcome.CRASHED, cause="rank1 was killed", ranks="1", gpus=2
    ),
    GpuFault(
        name="hangs",
        outcome=Outcome.HUNG,
        cause="no answer within 20 s",
        ranks="1",
        gpus=2,
        effort=HASTY,
    ),
]


@pytest.fixture(scope="module")
def configs(tiny_config) -> dict[GpuFault, TrainingConfig]:
    found = detect_hardware(os.environ)
    return {
        fault: tiny_config(fault.method, workers=fault.gpus, gpu_type=found.gpu_type)
        for fault in FAULTS
        if fault.gpus <= found.gpus_per_node
    }


@pytest.fixture(scope="module")
def launches(request, configs, altered_launch) -> Iterator[Callable[[GpuFault], Launched]]:
    asked = [item.callspec.params["fault"] for item in request.session.items if _asks(item)]
    launched = {
        fault: altered_launch(f"faults.{fault.name}", configs[fault], fault.ranks)
        for fault in asked
        if fault in configs
    }
    yield launched.__getitem__
    for session in launched.values():
        session.end()


def _asks(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and "launches" in item.fixturenames


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_told_apart_and_the_gpus_are_free_again(fault, configs, launches):
    if fault not in configs:
        pytest.skip(f"needs {fault.gpus} GPUs, and {torch.cuda.device_count()} are here")
    config = configs[fault]
    session = see_out(launches(fault), config, fault.effort)
    [result] = session.end.results
    assert session.struck_at, f"it ended before the fault: {result.cause}"
    seconds = session.ended_at - max(session.struck_at)
    note(fault, result, seconds)
    assert result.outcome is fault.outcome, result.cause
    assert result.cause.startswith(fault.cause)
    if fault.cause == MEMORY:
        assert result.requested_bytes == 2**45
        assert result.free_bytes is not None
        assert 0 < result.free_bytes < 2**45
    if fault.outcome is Outcome.HUNG:
        seconds -= fault.effort.timing_deadline_seconds
        for rank in range(fault.gpus):
            log = (session.directory / f"rank{rank}.log").read_text()
            assert "(most recent call first)" in log
    else:
        logs = [str(session.directory / f"rank{rank}.log") for rank in fault.ranks.split(",")]
        assert result.log in logs
    assert seconds < 15.0
    # Raises where somebody still computes there.
    check_idle(config.hardware, os.environ, patience_seconds=15.0)
