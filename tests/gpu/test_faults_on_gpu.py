"""Faults that only a real GPU, its allocators and its driver can have; `pytest -m gpu`."""

import dataclasses
import os

import pytest

from academic_pretraining.benchmarking.probes import Outcome
from academic_pretraining.gpus import Hardware, detect_hardware
from academic_pretraining.occupancy import check_idle

pytestmark = pytest.mark.gpu

FAULTS = {
    "fills_the_gpu": (Outcome.OUT_OF_MEMORY, "OutOfMemoryError: CUDA out of memory."),
    "pins_too_much": (Outcome.HOST_OUT_OF_MEMORY, "pinned memory: "),
    "trips_an_assertion_on_the_gpu": (Outcome.CRASHED, ""),
    "dies_in_training": (Outcome.CRASHED, "rank0 was killed"),
}


@pytest.fixture(scope="module")
def one_gpu() -> Hardware:
    return dataclasses.replace(detect_hardware(os.environ), gpus_per_node=1)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_apart_and_the_gpu_is_free_again(
    fault, one_gpu, altered_session, tiny_config
):
    outcome, cause = FAULTS[fault]
    config = tiny_config(workers=1, gpu_type=one_gpu.gpu_type)
    session = altered_session(f"faults.{fault}", config, ranks="0")
    [result] = session.end.results
    assert result.outcome is outcome, result.cause
    assert result.cause.startswith(cause)
    if fault == "fills_the_gpu":
        assert result.requested_bytes == 2**45
        assert result.free_bytes is not None
        assert 0 < result.free_bytes < 2**45
    [mark] = session.directory.glob("rank*.fault")
    assert session.ended_at - float(mark.read_text()) < 15.0
    # Raises where somebody still computes there.
    check_idle(one_gpu, os.environ, patience_seconds=15.0)
