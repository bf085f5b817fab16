"""Letting go of a trainer, so that the next one in its process finds the memory free."""

import contextlib
import functools
import gc
import sys
from typing import Any

import torch
from transformers import Trainer

_Cache = type(functools.cache(len))


def let_go(trainer: Trainer) -> None:
    """Take a model away from DeepSpeed, which keeps it, and its memory, alive otherwise.

    What is not freed in spite of it is noticed as `leftover_bytes`.
    """
    engine: Any = trainer.model_wrapped
    if not hasattr(engine, "zero_optimization_stage"):
        return
    with contextlib.suppress(Exception):
        # Its hooks on the model.
        engine.destroy()
    _empty_what_outlives_engines()


def _empty_what_outlives_engines() -> None:
    """Empty what DeepSpeed 0.19 keeps of ZeRO-3 for the rest of the process.

    The modules in their forward pass, of which the model itself never leaves; and a cache by
    modules, which a decorator hides. Both are private: tests/benchmarking/test_let_go.py fails when
    this does not free a model any more, and when it is not needed.
    """
    if module := sys.modules.get("deepspeed.runtime.zero.parameter_offload"):
        module.FWD_MODULE_STACK.clear()
    for cache in gc.get_objects():
        if type(cache) is _Cache and (cache.__module__ or "").startswith("deepspeed.runtime.zero."):
            cache.cache_clear()


def clean_up(*, cuda: bool) -> None:
    """Free what nothing refers to any more, on the device too."""
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
