"""Letting go of a trainer, so that the next one in its process finds the memory free."""

import contextlib
import gc
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer

from academic_pretraining.benchmarking.ranks import gather

# Of the device's memory, what may stay allocated before a process is changed for a new one.
_LEFTOVER_SHARE = 0.01
# torch's watchdog of NCCL looks every 100 ms (kWatchdogThreadSleepMillis in ProcessGroupNCCL).
_WATCHDOG_SECONDS = 0.2
_MOST_EXCHANGES = 3


def let_go(trainer: Trainer) -> None:
    """Take a model away from DeepSpeed, which keeps it, and its memory, alive otherwise.

    What is not freed in spite of it is noticed by `leftover_bytes`.
    """
    engine: Any = trainer.model_wrapped
    if not hasattr(engine, "zero_optimization_stage"):
        return
    for help_out in (engine.destroy, _empty_zero_3):
        with contextlib.suppress(Exception):
            help_out()


def _empty_zero_3() -> None:
    """Empty what DeepSpeed 0.19 keeps of ZeRO-3 for the rest of the process.

    The modules in their forward pass, of which the model itself never leaves; and a cache by
    modules, within a decorator that shows nothing of it. All are private:
    tests/benchmarking/test_let_go.py fails when this frees no model any more, and when it is not
    needed.
    """
    offload = sys.modules.get("deepspeed.runtime.zero.parameter_offload")
    if offload is None:
        return
    offload.FWD_MODULE_STACK.clear()
    hidden = vars(offload.PartitionedParameterCoordinator)[
        "_PartitionedParameterCoordinator__params_to_release"
    ]
    for cell in hidden.__closure__:
        cell.cell_contents.cache_clear()


def clean_up(*, cuda: bool) -> None:
    """Free what nothing refers to any more, on the device too."""
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()


def leftover_bytes(device_bytes: int) -> int:
    """Device memory of this rank that is still allocated; every rank must call it.

    What NCCL exchanged and nobody waited for by its name, as DDP's gradients, torch keeps until its
    watchdog has seen that it is over and another exchange of the same group begins. Where much is
    left, one is made in the default group, in which DDP and FSDP exchange.
    """
    for _ in range(_MOST_EXCHANGES):
        everyone = gather(is_much_left(torch.cuda.memory_allocated(), device_bytes))
        if len(everyone) == 1 or not any(everyone):
            break
        time.sleep(_WATCHDOG_SECONDS)
        _exchange()
    return torch.cuda.memory_allocated()


def is_much_left(leftover_bytes: int, device_bytes: int) -> bool:
    """Whether so much is left that the next probe belongs into a new process."""
    return leftover_bytes > _LEFTOVER_SHARE * device_bytes


def _exchange() -> None:
    dist.all_reduce(torch.zeros(1, device="cuda"))
    torch.cuda.synchronize()
