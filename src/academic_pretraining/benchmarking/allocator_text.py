"""The figures in what an allocator says when memory runs out."""

import contextlib
import os
import re

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

REQUESTED = re.compile(r"Tried to allocate ([\d.]+) (\w+)")
"""PyTorch's, of the device."""

FREE = re.compile(r"of which ([\d.]+) (\w+) is free")
"""Likewise."""

HOST_REQUESTED = re.compile(r"you tried to allocate (\d+) (bytes)")
"""PyTorch's, of the host."""

NCCL_REQUESTED = re.compile(r"Failed to CUDA [cm]alloc(?: async)? (\d+) (bytes)")
"""NCCL's last words (2.28)."""

# PyTorch tells the other processes from its own, unless a container hides which one that is.
_OWN = re.compile(r"this process has ([\d.]+) (\w+) memory in use")
_OTHERS = re.compile(r"Process (\d+) has ([\d.]+) (\w+) memory in use")
_TOTAL = re.compile(r"total capacity of ([\d.]+) (\w+)")
_OF_PYTORCH = (
    re.compile(r"([\d.]+) (\w+) is allocated by PyTorch"),
    re.compile(r"([\d.]+) (\w+) is reserved by PyTorch but unallocated"),
)
# What else a rank may hold: its CUDA context, kernels and NCCL's buffers.
_BESIDE_PYTORCH_BYTES = 4 * 2**30


def bytes_of(pattern: re.Pattern[str], text: str) -> int | None:
    """Read the number and the unit that a pattern finds; nothing where it finds none."""
    found = pattern.search(text)
    if not found or found[2] not in _UNITS:
        return None
    return int(float(found[1]) * _UNITS[found[2]])


def held_by_others(text: str) -> int | None:
    """Add up what PyTorch says of other processes than this session's, or find what is missing.

    Returns:
        bytes of the device, at least; nothing where the text does not tell.
    """
    total, free, *own = (bytes_of(p, text) for p in (_TOTAL, FREE, *_OF_PYTORCH))
    if total is None or free is None:
        return None
    if (of_this_process := bytes_of(_OWN, text)) is None:
        return max(0, total - free - sum(b or 0 for b in own) - _BESIDE_PYTORCH_BYTES)
    if of_this_process > total:
        # On Windows the driver has no figures for processes, and 2**64 - 1 is printed for each.
        return None
    return sum(
        int(float(number) * _UNITS.get(unit, 0))
        for process, number, unit in _OTHERS.findall(text)
        if not _is_of_this_session(int(process))
    )


def _is_of_this_session(process: int) -> bool:
    """Whether it is in this one's group, as all ranks are; elsewhere its number means nothing."""
    with contextlib.suppress(OSError, OverflowError):
        return os.getpgid(process) == os.getpgid(0)
    return False
