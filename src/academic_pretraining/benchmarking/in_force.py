"""Whether the Trainer really does what its arguments say, read off the wrapped model."""

import os
from typing import Any

import torch
from deepspeed.utils import get_z3_leaf_modules
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import MeasurementError, NotCompiledError
from academic_pretraining.methods import Backend, Sharding

# Read by torch when it is loaded, and stronger than what the Trainer sets.
_OVERRIDE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"


def check_in_force(trainer: Trainer, config: TrainingConfig, *, compiled: bool) -> None:
    """Compare a trained Trainer with its configuration.

    Transformers and accelerate drop some settings without a word, as FSDP with `use_cpu`; a
    figure for one setting must never be stored under the name of another.

    Raises:
        MeasurementError: naming each setting that is not in force.
        NotCompiledError: compilation alone is not, so that it can be measured without.
    """
    method = config.method
    wrapped = trainer.model_wrapped
    assert wrapped is not None
    found = _read(wrapped, config.recipe.layer_class)
    model: Any = trainer.model
    # A model's own name for it; tests/benchmarking/test_in_force.py holds this down.
    found["attention"] = model.config._attn_implementation if config.attention else None
    wanted = {
        "sharding backend": str(method.sharding.backend),
        "ZeRO stage": method.sharding.stage if method.sharding.backend is Backend.DEEPSPEED else 0,
        # DeepSpeed only warns where it finds no such class.
        "modules gathered whole": config.recipe.layer_class
        if method.sharding is Sharding.ZERO_3
        else "None",
        "layers sharded as a part of others": 0,
        "reshard after forward": method.sharding is Sharding.FSDP_FULL_SHARD,
        "offloading": method.offloading,
        "checkpointing": method.activation_checkpointing,
        "compile": compiled,
        "attention": config.attention,
    }
    if config.hardware.world_size > 1 and method.sharding.backend is None:
        wanted["data parallel"] = True
    wrong = [
        f"{name} is {found[name]} instead of {value}"
        for name, value in wanted.items()
        if found[name] != value
    ]
    if not config.tf32 and config.hardware.gpu.supports_tf32 and os.environ.get(_OVERRIDE) == "1":
        wrong.append(f"{_OVERRIDE}=1 has fp32 multiplied as TF32: unset it")
    if wrong:
        raise MeasurementError(f"{config.label}: not in force: {'; '.join(wrong)}")
    # Each layer is compiled for itself then, or not at all.
    if compiled and method.sharding.hooks_into_layers and not _compiles(wrapped, config):
        raise NotCompiledError(
            f"{config.label}: not in force: no {config.recipe.layer_class} is compiled"
        )


def _read(wrapped: nn.Module, layer_class: str) -> dict[str, object]:
    inner = getattr(wrapped, "_orig_mod", wrapped)
    found: dict[str, object] = {
        "sharding backend": "None",
        "ZeRO stage": 0,
        "modules gathered whole": "None",
        "layers sharded as a part of others": 0,
        "reshard after forward": False,
        "offloading": False,
        "compile": isinstance(wrapped, torch._dynamo.OptimizedModule),
        "data parallel": isinstance(inner, nn.parallel.DistributedDataParallel),
        "checkpointing": any(
            getattr(module, "gradient_checkpointing", False) for module in inner.modules()
        ),
    }
    if any(isinstance(module, FSDPModule) for module in wrapped.modules()):
        layers = _layers(wrapped, layer_class)
        units = [layer for layer in layers if isinstance(layer, FSDPModule)]
        found |= {
            "sharding backend": Backend.FSDP.value,
            "layers sharded as a part of others": len(layers) - len(units) if units else "all",
            # The layers decide; embedding, head and root are never resharded after forward.
            "reshard after forward": any(_reshards(unit) for unit in units),
            "offloading": all(p.device.type == "cpu" for p in wrapped.parameters())
            and torch.cuda.is_available(),
        }
    elif hasattr(inner, "zero_optimization_stage"):
        found |= {
            "sharding backend": Backend.DEEPSPEED.value,
            "ZeRO stage": inner.zero_optimization_stage(),  # pyright: ignore
            "modules gathered whole": _classes(get_z3_leaf_modules(inner)),
            "offloading": inner.zero_cpu_offload(),  # pyright: ignore
            "compile": bool(inner.is_compiled),
        }
    return found


def _compiles(wrapped: nn.Module, config: TrainingConfig) -> bool:
    """Whether Dynamo holds code for the layers' forward pass, since it was last reset."""
    for layer in {type(m) for m in _layers(wrapped, config.recipe.layer_class)}:
        forward = layer.forward
        while forward is not None:
            # There is no public way to ask; tests/benchmarking/test_in_force.py holds this down.
            if torch._dynamo.eval_frame._debug_get_cache_entry_list(forward.__code__):
                return True
            forward = getattr(forward, "__wrapped__", None)
    return False


def _layers(wrapped: nn.Module, layer_class: str) -> list[nn.Module]:
    # FSDP2 puts its own name before that of the class.
    return [m for m in wrapped.modules() if type(m).__name__.endswith(layer_class)]


def _classes(modules: list[nn.Module]) -> str:
    return ", ".join(sorted({type(module).__name__ for module in modules})) or "None"


def _reshards(layer: FSDPModule) -> bool:
    # FSDP2 has a setter but no public getter; tests/benchmarking/test_in_force.py holds this down.
    group = layer._get_fsdp_state()._fsdp_param_group
    return group is not None and group.post_forward_mesh_info is not None
