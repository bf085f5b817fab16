"""FSDP2 sharding as the Trainer's `fsdp_config`."""

from typing import Any

from academic_pretraining.methods import Backend, Method
from academic_pretraining.models.recipe import ModelRecipe


def fsdp_config(method: Method, recipe: ModelRecipe) -> dict[str, Any] | None:
    """Build the `fsdp_config` field of TrainingArguments; `None` where the method is not FSDP.

    Checkpointing is left to `gradient_checkpointing`. With `activation_checkpointing` in here
    accelerate 1.15 has dropout draw other numbers in the recomputation
    (`preserve_rng_state=False`), so that gradients are not those of the forward pass. It gathers
    no less often, of which transformers warns: two gloo ranks gathered as often either way.
    """
    if method.sharding.backend is not Backend.FSDP:
        return None
    return {
        "version": 2,
        "reshard_after_forward": method.sharding.stage == 3,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": [recipe.layer_class],
        "activation_checkpointing": False,
        "cpu_offload": method.offloading,
        "state_dict_type": "SHARDED_STATE_DICT",
    }
