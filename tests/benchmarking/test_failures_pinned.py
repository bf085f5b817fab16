"""Whose memory ran out where CUDA only says that some did."""

import pytest
import torch

from academic_pretraining.benchmarking.failures import classify
from academic_pretraining.benchmarking.probes import Outcome

GIB = 2**30
DRIVER = (
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other "
    "API call, so the stacktrace below might be incorrect.\nFor debugging consider passing "
    "CUDA_LAUNCH_BLOCKING=1"
)


class Host:
    """A tensor whose pinning fails as CUDA says it."""

    def pin_memory(self, text: str = DRIVER):
        raise torch.AcceleratorError(text)


def allocate_at_once():
    Host().pin_memory()


def empty(size: int, **how):
    raise torch.AcceleratorError(DRIVER)


def allocate_over_several_lines():
    empty(
        2**45,
        pin_memory=True,
    )


def allocate_pinned_buffers():
    raise torch.AcceleratorError(DRIVER)


def within_libraries():
    def copy():
        raise torch.AcceleratorError(DRIVER)

    def init_pinned_buffers():
        copy()

    init_pinned_buffers()


def unknown() -> None:
    return None


def almost_full() -> tuple[int, int]:
    return 2 * GIB, 80 * GIB


def half_empty() -> tuple[int, int]:
    return 40 * GIB, 80 * GIB


def broken() -> tuple[int, int]:
    raise torch.AcceleratorError("CUDA error: device-side assert triggered")


def error_of(call) -> BaseException:
    with pytest.raises(torch.AcceleratorError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    "call",
    [allocate_at_once, allocate_over_several_lines, allocate_pinned_buffers, within_libraries],
)
@pytest.mark.parametrize("memory", [unknown, almost_full, broken])
def test_a_call_for_pinned_memory_is_told_from_one_for_the_devices(call, memory):
    error = error_of(call)
    if call in (allocate_at_once, allocate_over_several_lines):
        # As from C++, so that the call is the last frame.
        assert error.__traceback__ is not None
        frames = error.__traceback__.tb_next
        assert frames is not None
        frames.tb_next = None
    failure = classify(error, device_memory=memory)
    assert failure.outcome is Outcome.HOST_OUT_OF_MEMORY
    assert failure.cause.startswith("pinned memory: AcceleratorError: CUDA error: out of memory")
    assert not failure.transient


def allocate():
    raise torch.AcceleratorError(DRIVER)


def test_memory_of_a_device_that_is_half_empty_did_not_run_out():
    failure = classify(error_of(allocate), device_memory=half_empty)
    assert failure.outcome is Outcome.HOST_OUT_OF_MEMORY
    assert failure.cause.startswith("pinned memory: AcceleratorError: CUDA error: out of memory")
    assert failure.cause.endswith("(40.0 GiB of the device were free)")
    assert not failure.transient


@pytest.mark.parametrize("memory", [unknown, almost_full, broken])
def test_without_a_sign_of_the_host_it_was_the_device(memory):
    failure = classify(error_of(allocate), device_memory=memory)
    assert failure.outcome is Outcome.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        # Its blocks may be too small for what is asked of it.
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."),
            Outcome.OUT_OF_MEMORY,
        ),
        # They ask for a few MiB: something else went wrong, which a second try may not meet.
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate()`"),
            Outcome.CRASHED,
        ),
        (
            RuntimeError("NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'"),
            Outcome.CRASHED,
        ),
    ],
    ids=["allocator", "cuBLAS", "NCCL"],
)
def test_only_the_allocator_is_believed_where_the_device_is_half_empty(error, outcome):
    failure = classify(error, device_memory=half_empty)
    assert failure.outcome is outcome
    assert failure.transient


def test_the_allocators_error_is_the_devices_whoever_wraps_it():
    def pin_memory():
        raise torch.AcceleratorError("while compiling: CUDA out of memory. Tried to allocate 1 GiB")

    assert classify(error_of(pin_memory)).outcome is not Outcome.HOST_OUT_OF_MEMORY


def test_the_device_is_not_asked_before_it_is_in_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", half_empty)
    assert classify(error_of(allocate)).outcome is Outcome.OUT_OF_MEMORY
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert classify(error_of(allocate)).outcome is Outcome.HOST_OUT_OF_MEMORY
