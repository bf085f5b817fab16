"""ZeRO sharding as a DeepSpeed configuration."""

from typing import Any

from academic_pretraining.methods import Backend, Method
from academic_pretraining.models.recipe import ModelRecipe


def deepspeed_config(
    method: Method, recipe: ModelRecipe, *, compiles: bool
) -> dict[str, Any] | None:
    """Build the `deepspeed` field of TrainingArguments; `None` where the method is not ZeRO.

    There is no optimizer section: with one, DeepSpeed builds its own optimizer over a single
    parameter group, which decays biases and norms that the Trainer leaves out. Without one the
    Trainer's AdamW, groups and schedule are what trains. `auto` stands only where the Trainer
    fills in its own argument (batch, precision, clipping) or a size of the model.

    Bucket and sub-group sizes are those of arXiv 2410.23261.

    Args:
        method: how it is sharded and offloaded.
        recipe: whose layers ZeRO-3 gathers, each as a whole.
        compiles: whether `torch.compile` is part of the method for this model, also where it is
            timed without it.
    """
    if method.sharding.backend is not Backend.DEEPSPEED:
        return None
    stage = method.sharding.stage
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True}
    if stage <= 2:
        zero |= {"allgather_bucket_size": 200_000_000, "reduce_bucket_size": 200_000_000}
    if stage >= 2:
        zero["overlap_comm"] = True
    if stage == 3:
        zero |= {
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "sub_group_size": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": True,
            # A layer's parameters are gathered as a whole, as FSDP2 does, and not module by
            # module, whose Python hooks would keep the GPU waiting and break compiled code.
            "leaf_module": {"classes": [recipe.layer_class]},
        }
        if compiles:
            # DeepSpeed's own linear function, compiled by torch 2.11, passes no gradient on to what
            # lies below it, without a word: only the last layer of a model learns. torch 2.13
            # compiles it rightly. tests/contract compares both with plain training.
            zero["memory_efficient_linear"] = False
    host = {"device": "cpu", "pin_memory": True}
    if method.offloading:
        zero["offload_optimizer"] = dict(host)
    if method.offloading and stage == 3:
        zero["offload_param"] = dict(host)
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "fp16": {"enabled": "auto"},
        "bf16": {"enabled": "auto"},
        # Keeps the Trainer's fused AdamW, which has a vectorised CPU kernel, under offloading;
        # otherwise it is swapped for DeepSpeedCPUAdam, which compiles C++ on first use.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
