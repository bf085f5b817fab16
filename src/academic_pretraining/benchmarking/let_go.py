"""Letting go of a trainer, so that the next one in its process finds the memory free."""

import contextlib
import gc
import sys
from typing import Any

import torch
from transformers import Trainer


def let_go(trainer: Trainer) -> None:
    """Take a model away from DeepSpeed, which keeps it, and its memory, alive otherwise.

    What is not freed in spite of it is noticed as `leftover_bytes`.
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
