import errno
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
import torch.distributed as dist
from samples import ALLOCATOR

from academic_pretraining.benchmarking.failures import classify
from academic_pretraining.benchmarking.probes import Outcome
from academic_pretraining.errors import MeasurementError

MIB, GIB = 2**20, 2**30

OTHERS = [
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other "
    "API call, so the stacktrace below might be incorrect.\nFor debugging consider passing "
    "CUDA_LAUNCH_BLOCKING=1",
    # Around loading a compiled kernel.
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclUnhandledCudaError: Call to "
    "CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
]


# As two H100s said it, with torch 2.11.0 and memory for no other communicator.
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:93, unhandled cuda error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9\nncclUnhandledCudaError: Call to "
    "CUDA function failed.\nLast error:\nFailed to CUDA calloc async 8 bytes"
)


def raise_(error: BaseException):
    raise error


def raised(error: BaseException, *, while_handling: BaseException, cause: bool) -> BaseException:
    """Raise one exception while another is handled, with or without `from`."""
    try:
        try:
            raise while_handling
        except BaseException as first:
            if cause:
                raise error from first
            raise error  # noqa: B904
    except BaseException as found:
        return found


def test_the_allocators_text_is_read():
    failure = classify(torch.OutOfMemoryError(ALLOCATOR))
    assert failure.outcome is Outcome.OUT_OF_MEMORY
    assert failure.requested_bytes == int(2.5 * GIB)
    assert failure.free_bytes == int(1.31 * GIB)
    assert failure.cause.startswith("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50")


@pytest.mark.parametrize(
    ("size", "expected"),
    [("512 bytes", 512), ("1.50 KiB", 1536), ("20.00 MiB", 20 * MIB), ("0.75 GiB", 3 * GIB // 4)],
)
def test_every_unit_of_the_allocator_is_read(size, expected):
    text = ALLOCATOR.replace("2.50 GiB", size).replace("1.31 GiB", size)
    failure = classify(torch.OutOfMemoryError(text))
    assert (failure.requested_bytes, failure.free_bytes) == (expected, expected)


@pytest.mark.parametrize("size", ["3.00 TiB", "much"])
def test_a_size_that_cannot_be_read_is_left_open(size):
    failure = classify(torch.OutOfMemoryError(ALLOCATOR.replace("2.50 GiB", size)))
    assert failure.outcome is Outcome.OUT_OF_MEMORY
    assert failure.requested_bytes is None
    assert failure.free_bytes == int(1.31 * GIB)


@pytest.mark.parametrize("text", OTHERS, ids=["driver", "kernel", "cuBLAS", "cuDNN", "NCCL"])
def test_allocations_of_the_libraries_count_as_well(text):
    failure = classify(RuntimeError(text))
    assert failure.outcome is Outcome.OUT_OF_MEMORY
    assert (failure.requested_bytes, failure.free_bytes) == (None, None)
    assert "\n" not in failure.cause


@pytest.mark.parametrize(
    ("memory", "outcome"),
    [
        (lambda: (2 * MIB, 80 * GIB), Outcome.OUT_OF_MEMORY),
        (lambda: None, Outcome.OUT_OF_MEMORY),
        (lambda: (60 * GIB, 80 * GIB), Outcome.CRASHED),
        # After an assertion on the device, say, it answers nothing any more.
        (lambda: raise_(RuntimeError("device-side assert")), Outcome.CRASHED),
    ],
    ids=["full", "unknown", "empty", "broken"],
)
@pytest.mark.parametrize("text", [NCCL, *OTHERS[2:]])
def test_libraries_lack_memory_only_where_the_device_does(memory, outcome, text):
    failure = classify(dist.DistBackendError(text), device_memory=memory)
    assert failure.outcome is outcome
    assert "\n" not in failure.cause
    if outcome is Outcome.OUT_OF_MEMORY:
        assert failure.requested_bytes == (8 if text == NCCL else None)
        known = memory()
        assert failure.free_bytes == (known[0] if known else None)


def test_shared_memory_of_the_host_is_no_full_disk():
    # As NCCL 2.28 says it in src/misc/shmutils.cc.
    failure = classify(
        RuntimeError(
            "Error while creating shared memory segment /dev/shm/nccl-Nx (size 33030532), error: "
            "No space left on device (28)"
        )
    )
    assert failure.outcome is Outcome.HOST_OUT_OF_MEMORY
    assert failure.cause.startswith("shared memory of the host: RuntimeError: Error while creating")


@pytest.mark.parametrize("cause", [True, False], ids=["from", "while handling"])
def test_memory_is_found_behind_what_was_raised_from_it(cause):
    memory = torch.OutOfMemoryError(ALLOCATOR)
    middle = raised(ValueError("in a library"), while_handling=memory, cause=cause)
    failure = classify(raised(RuntimeError("on top"), while_handling=middle, cause=cause))
    assert failure.outcome is Outcome.OUT_OF_MEMORY
    assert failure.requested_bytes == int(2.5 * GIB)
    assert failure.cause.startswith("OutOfMemoryError")


def test_a_chain_that_bites_its_tail_ends():
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert classify(first).cause == "ValueError: first"


@pytest.fixture
def own_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def failure_of_compiling(function, **how) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        torch.compile(function, **how)(torch.ones(2))
    return caught.value


def test_a_backend_that_fails_is_a_failed_compilation(own_compiler):
    def broken(graph, inputs):
        raise ValueError("no such instruction")

    error = failure_of_compiling(lambda x: x + 1, backend=broken)
    failure = classify(error)
    assert failure.outcome is Outcome.COMPILE_FAILED
    assert "ValueError: no such instruction" in failure.cause
    assert classify(raised(RuntimeError("on top"), while_handling=error, cause=True)) == failure


def test_what_dynamo_cannot_trace_is_a_failed_compilation(own_compiler):
    def broken_up(x):
        torch._dynamo.graph_break()
        return x + 1

    failure = classify(failure_of_compiling(broken_up, fullgraph=True, backend="eager"))
    assert failure.outcome is Outcome.COMPILE_FAILED


def test_inductor_without_a_c_compiler_is_a_failed_compilation(own_compiler):
    without = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
    failure = classify(failure_of_compiling(lambda x: x.sin() + x.sum(), options=without))
    assert failure.outcome is Outcome.COMPILE_FAILED
    assert "compiler" in failure.cause


@pytest.mark.parametrize(
    "killed",
    [
        BrokenProcessPool("A process in the process pool was terminated abruptly"),
        RuntimeError("g++: fatal error: Killed signal terminated program cc1plus"),
    ],
)
def test_a_compiler_that_is_killed_does_not_say_that_nothing_compiles(own_compiler, killed):
    def broken(graph, inputs):
        raise killed

    failure = classify(failure_of_compiling(lambda x: x + 1, backend=broken))
    assert (failure.outcome, failure.transient) == (Outcome.CRASHED, True)
    assert str(killed) in failure.cause


def test_memory_that_runs_out_while_compiling_is_memory(own_compiler):
    def hungry(graph, inputs):
        raise torch.OutOfMemoryError(ALLOCATOR)

    failure = classify(failure_of_compiling(lambda x: x + 1, backend=hungry))
    assert failure.outcome is Outcome.OUT_OF_MEMORY
    assert failure.requested_bytes == int(2.5 * GIB)


def test_an_error_of_the_compiled_code_itself_is_a_crash(own_compiler):
    def faulty(x):
        raise KeyError("mine")

    failure = classify(failure_of_compiling(faulty, backend="eager"))
    assert failure.outcome is Outcome.CRASHED
    assert failure.cause == "KeyError: 'mine'"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("a\n  b\tc"), "ValueError: a b c"),
        (AssertionError(), "AssertionError"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (RuntimeError("CUDA error: an illegal memory access"), None),
        (RuntimeError("Connection closed by peer"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_a_crash_in_one_line(error, cause):
    failure = classify(error)
    assert failure.outcome is Outcome.CRASHED
    assert failure.cause == (cause or f"{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (RuntimeError("NCCL error: remote process exited"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), True),
        (ConnectionResetError("by peer"), True),
        (TimeoutError("waiting for the others"), True),
        (OSError("no space left on device"), True),
        (SystemExit(3), True),
        (ValueError("no such optimizer"), False),
        (TypeError("an unexpected keyword"), False),
        (KeyError("x"), False),
        (ImportError("no such module"), False),
        (AssertionError(), False),
        (MeasurementError("sharding is not in force"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_plain_python_did_wrong_is_not_worth_a_second_try(error, transient):
    failure = classify(error)
    assert (failure.outcome, failure.transient) == (Outcome.CRASHED, transient)


@pytest.mark.parametrize(
    ("error", "requested"),
    [
        (MemoryError("out of memory on the host"), None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 4398046511104 bytes. Error code 12 (Cannot allocate "
                "memory)"
            ),
            2**42,
        ),
    ],
    ids=["Python", "the operating system", "PyTorch"],
)
def test_memory_of_the_host_is_told_from_that_of_the_device(error, requested):
    failure = classify(error)
    assert failure.outcome is Outcome.HOST_OUT_OF_MEMORY
    assert failure.requested_bytes == requested
    assert not failure.transient


def test_what_pytorch_really_says_of_the_hosts_memory_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    failure = classify(caught.value)
    assert failure.outcome is Outcome.HOST_OUT_OF_MEMORY
    assert failure.requested_bytes == 2**50


def test_a_long_cause_is_cut():
    assert len(classify(ValueError("x" * 10_000)).cause) < 400


def test_classifying_needs_no_process_group_and_no_gpu():
    # A worker must be able to say why it fails at any time, CUDA initialised or not.
    program = (
        "from academic_pretraining.benchmarking.failures import classify\n"
        "import torch\n"
        "print(classify(ValueError('early')).cause, torch.cuda.is_initialized())"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout.strip() == "ValueError: early False"
