"""Telling failures apart: memory of the device or the host, the disk, a compilation, the rest."""

import contextlib
import linecache
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from academic_pretraining.benchmarking.allocator_text import (
    FREE,
    HOST_REQUESTED,
    NCCL_REQUESTED,
    REQUESTED,
    bytes_of,
    held_by_others,
)
from academic_pretraining.benchmarking.probes import Outcome
from academic_pretraining.benchmarking.storage import is_full, says_full
from academic_pretraining.errors import NotCompiledError

_DRIVER = "CUDA error: out of memory"
# What the driver says, which has other words for a device that broke.
_OF_THE_DRIVER = (
    _DRIVER,
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
)
# What cuBLAS, NCCL and the driver say when an allocation of their own fails.
_OTHER_ALLOCATIONS = (
    *_OF_THE_DRIVER,
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
)
# What the host says of its own memory: PyTorch's allocator, Python, the operating system.
_HOST_ALLOCATIONS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Cannot allocate memory",
    "unable to mmap",
    "std::bad_alloc",
)
# A file system of memory, where NCCL and data loaders put what processes share.
_SHARED = "/dev/shm"
# What Inductor says of a compiling process that somebody killed: its pool, and gcc of its own.
_KILLED_COMPILERS = ("BrokenProcessPool", "Killed signal terminated program")

# What gloo, NCCL and the store say when the process at the other end is no more.
_DEAD_PEERS = (
    "Connection closed by peer",
    "Connection closed by remote peer",
    "Connection reset by peer",
    "Connection was likely closed",
    "remote process exited",
    "Broken pipe",
)

# Frames of calls for pinned memory, by PyTorch, FSDP or DeepSpeed.
_PINNING = ("pin_memory", "pinned")
# Libraries allocate little beside the training; what fails with more than this free was not it.
_PLENTY = 0.1

DeviceMemory = Callable[[], tuple[int, int] | None]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a probe could not be finished on one rank.

    Attributes:
        outcome: the kind.
        cause: the exception in one line.
        requested_bytes: of the allocation that failed.
        free_bytes: device memory that was free then.
        others_bytes: device memory that other processes held then, where PyTorch could tell; at
            least, where a container hides them.
        misses_another: whether it only tells that another rank is no more.
        transient: whether a second try may end otherwise; not where plain Python went wrong, and
            not soon where the disk is full.
    """

    outcome: Outcome
    cause: str
    transient: bool = True
    misses_another: bool = False
    requested_bytes: int | None = None
    free_bytes: int | None = None
    others_bytes: int | None = None


def classify(
    error: BaseException,
    folder: Path | None = None,
    *,
    device_memory: DeviceMemory | None = None,
) -> Failure:
    """Find the kind of an exception, looking through what it was raised from.

    Args:
        error: what was raised.
        folder: where this process writes; PyTorch does not say so when a full disk is why a
            checkpoint fails.
        device_memory: gives the device's free and total bytes, where they are known; asked only
            where CUDA does not say whose memory ran out.
    """
    device_memory = device_memory or _memory_of_the_device
    for link in _chain(error):
        if cause := _host_allocation(link, device_memory):
            return Failure(
                outcome=Outcome.HOST_OUT_OF_MEMORY,
                cause=cause,
                transient=False,
                requested_bytes=bytes_of(HOST_REQUESTED, str(link)),
            )
    for link in _chain(error):
        if failure := _device_allocation(link, device_memory):
            return failure
    if cause := _full_disk(error, folder):
        return Failure(outcome=Outcome.CRASHED, cause=cause, transient=False)
    for link in _chain(error):
        said = f"{type(link).__name__}: {link}"
        if any(words in said for words in _KILLED_COMPILERS):
            # The model compiles, only not on a host so short of memory.
            return Failure(outcome=Outcome.CRASHED, cause=_one_line(link))
    # Their exceptions have no public base class; the packages that raise them are what is stable.
    compilers = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
    for link in _chain(error):
        if isinstance(link, NotCompiledError) or type(link).__module__.startswith(compilers):
            return Failure(outcome=Outcome.COMPILE_FAILED, cause=_one_line(link))
    # NCCL, CUDA and sockets raise these two; SystemExit is a death like that of a signal.
    return Failure(
        outcome=Outcome.CRASHED,
        cause=_one_line(error),
        transient=isinstance(error, RuntimeError | OSError | SystemExit),
        misses_another=any(words in str(link) for link in _chain(error) for words in _DEAD_PEERS),
    )


def _device_allocation(error: BaseException, device_memory: DeviceMemory) -> Failure | None:
    """Say that memory of the device ran out; nothing where that is not the matter.

    Libraries say so of their own allocations where the device broke before, too, or where the fault
    is another one: those count where the device is full, or where nobody knows.
    """
    text = str(error)
    free_bytes = bytes_of(FREE, text)
    if not isinstance(error, torch.OutOfMemoryError):
        if not any(a in text for a in _OTHER_ALLOCATIONS) and not NCCL_REQUESTED.search(text):
            return None
        try:
            memory = device_memory()
        except Exception:
            if not any(words in text for words in _OF_THE_DRIVER):
                return None
            memory = None
        if memory:
            if _is_plenty(*memory):
                return None
            free_bytes = memory[0]
    return Failure(
        outcome=Outcome.OUT_OF_MEMORY,
        cause=_one_line(error),
        requested_bytes=bytes_of(REQUESTED, text) or bytes_of(NCCL_REQUESTED, text),
        free_bytes=free_bytes,
        others_bytes=held_by_others(text),
    )


def _host_allocation(error: BaseException, device_memory: DeviceMemory) -> str:
    """Say what of the host could not be allocated; nothing where that is not the matter."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return ""
    if isinstance(error, MemoryError) or any(part in text for part in _HOST_ALLOCATIONS):
        return _one_line(error)
    if _SHARED in text and says_full(error):
        return f"shared memory of the host: {_one_line(error)}"
    if "out of memory" in text and "CUDA out of memory" not in text:
        return _pinned_memory(error, device_memory)
    return ""


def _pinned_memory(error: BaseException, device_memory: DeviceMemory) -> str:
    """Say that pinned memory ran out; CUDA says "out of memory" of the host's and the device's."""
    free_bytes = _plenty(device_memory) if _DRIVER in str(error) else None
    if free_bytes is not None:
        free = f"{free_bytes / 2**30:.1f} GiB of the device were free"
        return f"pinned memory: {_one_line(error)} ({free})"
    return f"pinned memory: {_one_line(error)}" if _pins(error) else ""


def _plenty(device_memory: DeviceMemory) -> int | None:
    """Give the device's free bytes where they are too many for it to have run out."""
    # A broken device answers with errors of its own, and the first one is what must be told.
    with contextlib.suppress(Exception):
        if memory := device_memory():
            return memory[0] if _is_plenty(*memory) else None
    return None


def _is_plenty(free_bytes: int, total_bytes: int) -> bool:
    return free_bytes > _PLENTY * total_bytes


def _memory_of_the_device() -> tuple[int, int] | None:
    """Ask for free and total bytes of this rank's device; nothing where CUDA is not in use."""
    return torch.cuda.mem_get_info() if torch.cuda.is_initialized() else None


def _pins(error: BaseException) -> bool:
    """Whether any call on the way to the error was one for pinned memory."""
    for frame in traceback.extract_tb(error.__traceback__):
        first = frame.lineno or 0
        lines = linecache.getlines(frame.filename)[first - 1 : frame.end_lineno or first]
        if any(word in text for word in _PINNING for text in (frame.name, *lines)):
            return True
    return False


def _full_disk(error: BaseException, folder: Path | None) -> str:
    """Say that the disk is full; nothing where that is not the matter."""
    said = next((link for link in _chain(error) if says_full(link)), None)
    if said is None and (folder is None or not is_full(folder)):
        return ""
    return f"the disk is full: {_one_line(said or error)}"


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        # Also where it was suppressed: dynamo raises its error `from None`, whatever led to it.
        link = link.__cause__ or link.__context__
    return links


def _one_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__
