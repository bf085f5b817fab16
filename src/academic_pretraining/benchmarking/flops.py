"""FLOPs of one training example, counted on the meta device."""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.mamba import modeling_mamba

from academic_pretraining.benchmarking.build import build_model, synthetic_dataset
from academic_pretraining.models.recipe import ModelRecipe, Task

_SHORT = 64


def model_flops_per_example(recipe: ModelRecipe) -> int:
    """Count the FLOPs of matrix products and convolutions in one forward and backward pass.

    The backward pass counts twice the forward one. Causal attention counts half of its square:
    what lies above the diagonal is not needed. Recomputation is not counted. A model without
    attention is linear in its sequence, so that a short one is counted and scaled.
    """
    scale = 1.0
    if recipe.sequence_length and recipe.attention_kernel is None:
        scale = recipe.sequence_length / _SHORT
        recipe = dataclasses.replace(recipe, sequence_length=_SHORT)
    with torch.device("meta"):
        model = build_model(recipe, attention="eager")
    example = synthetic_dataset(recipe, 1)[0]
    batch = {name: tensor.unsqueeze(0).to("meta") for name, tensor in example.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad(), _without_kernels():
        model(**batch)
    forward = counter.get_total_flops()
    if recipe.task is Task.CAUSAL_LM and recipe.attention_kernel is not None:
        forward -= _causal_attention_flops(recipe) // 2
    return round(3 * forward * scale)


@contextlib.contextmanager
def _without_kernels() -> Iterator[None]:
    """Have Mamba computed by PyTorch alone: its kernels refuse the meta device, and hide FLOPs.

    transformers 5.17 takes those of an installed mamba-ssm as it is imported, and has no switch;
    what it would fall back on is what it wrapped. tests/benchmarking/test_flops.py fails without
    this.
    """
    wrapped = {
        name: value
        for name, value in vars(modeling_mamba).items()
        if inspect.isfunction(value)
        and value.__module__ == modeling_mamba.__name__
        and hasattr(value, "__wrapped__")
    }
    for name, function in wrapped.items():
        setattr(modeling_mamba, name, inspect.unwrap(function))
    try:
        yield
    finally:
        for name, function in wrapped.items():
            setattr(modeling_mamba, name, function)


def _causal_attention_flops(recipe: ModelRecipe) -> int:
    """Two products of [s, h] with [h, s] and [s, s] with [s, h] in each layer, 2 FLOPs a cell."""
    tokens = recipe.sequence_length or 0
    architecture = recipe.architecture
    return 4 * tokens**2 * architecture["hidden_size"] * architecture["num_hidden_layers"]
