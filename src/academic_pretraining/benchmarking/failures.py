"""Telling failures apart: memory of the device or the host, the disk, a compilation, the rest."""

import re
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from academic_pretraining.benchmarking.probes import Outcome
from academic_pretraining.benchmarking.storage import is_full, says_full

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_REQUESTED = re.compile(r"Tried to allocate ([\d.]+) (\w+)")
_HOST_REQUESTED = re.compile(r"you tried to allocate (\d+) (bytes)")
_FREE = re.compile(r"of which ([\d.]+) (\w+) is free")
# What cuBLAS, NCCL and the driver say when an allocation of their own fails.
_OTHER_ALLOCATIONS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
    "Triton Error [CUDA]: out of memory",
)
# What the host says of its own memory: PyTorch's allocator, Python, the operating system.
_HOST_ALLOCATIONS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Cannot allocate memory",
    "unable to mmap",
    "std::bad_alloc",
)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a probe could not be finished on one rank.

    Attributes:
        outcome: the kind.
        cause: the exception in one line.
        requested_bytes: of the allocation that failed.
        free_bytes: device memory that was free then.
        transient: whether a second try may end otherwise; not where plain Python went wrong, and
            not soon where the disk is full.
    """

    outcome: Outcome
    cause: str
    transient: bool = True
    requested_bytes: int | None = None
    free_bytes: int | None = None


def classify(error: BaseException, folder: Path | None = None) -> Failure:
    """Find the kind of an exception, looking through what it was raised from.

    Args:
        error: what was raised.
        folder: where this process writes; PyTorch does not say so when a full disk is why a
            checkpoint fails.
    """
    for link in _chain(error):
        if cause := _host_allocation(link):
            return Failure(
                outcome=Outcome.HOST_OUT_OF_MEMORY,
                cause=cause,
                transient=False,
                requested_bytes=_bytes(_HOST_REQUESTED, str(link)),
            )
    for link in _chain(error):
        text = str(link)
        if isinstance(link, torch.OutOfMemoryError) or any(
            allocation in text for allocation in _OTHER_ALLOCATIONS
        ):
            return Failure(
                outcome=Outcome.OUT_OF_MEMORY,
                cause=_one_line(link),
                requested_bytes=_bytes(_REQUESTED, text),
                free_bytes=_bytes(_FREE, text),
            )
    if cause := _full_disk(error, folder):
        return Failure(outcome=Outcome.CRASHED, cause=cause, transient=False)
    # Their exceptions have no public base class; the packages that raise them are what is stable.
    compilers = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
    for link in _chain(error):
        if type(link).__module__.startswith(compilers):
            return Failure(outcome=Outcome.COMPILE_FAILED, cause=_one_line(link))
    # NCCL, CUDA and sockets raise these two; SystemExit is a death like that of a signal.
    transient = isinstance(error, RuntimeError | OSError | SystemExit)
    return Failure(outcome=Outcome.CRASHED, cause=_one_line(error), transient=transient)


def _host_allocation(error: BaseException) -> str:
    """Say what of the host could not be allocated; nothing where that is not the matter."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return ""
    if isinstance(error, MemoryError) or any(part in text for part in _HOST_ALLOCATIONS):
        return _one_line(error)
    # CUDA says "out of memory" of pinned memory too; only the call that failed tells them apart.
    last = traceback.extract_tb(error.__traceback__)[-1:]
    if last and "pin_memory" in (last[0].line or "") and "out of memory" in text:
        return f"pinned memory: {_one_line(error)}"
    return ""


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


def _bytes(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    if not found or found[2] not in _UNITS:
        return None
    return int(float(found[1]) * _UNITS[found[2]])


def _one_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__
