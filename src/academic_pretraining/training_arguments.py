"""A configuration and a batch plan as the fields of `transformers.TrainingArguments`.

The benchmark, the export and the training all read this one function: what is measured is what
is exported is what trains.
"""

import json
from typing import Any

from academic_pretraining.config import BatchPlan, TrainingConfig
from academic_pretraining.deepspeed import deepspeed_config
from academic_pretraining.fsdp import fsdp_config
from academic_pretraining.models.recipe import Precision


def training_arguments_fields(
    config: TrainingConfig, plan: BatchPlan, *, torch_compile: bool | None = None
) -> dict[str, Any]:
    """Build the keyword arguments of TrainingArguments, for the target machine.

    Every value is plain JSON, built afresh, so that nobody's change reaches another caller.
    `output_dir` is left to whoever trains.

    Args:
        config: what trains.
        plan: how its batch is divided.
        torch_compile: overrides the method's wish, as where compilation was given up.
    """
    recipe, method = config.recipe, config.method
    compiles = config.compiles if torch_compile is None else torch_compile
    fields: dict[str, Any] = {
        # batch and length
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "max_steps": recipe.max_steps,
        # optimizer and schedule
        "optim": "adamw_torch_fused",
        "learning_rate": recipe.learning_rate,
        "adam_beta1": recipe.adam_beta1,
        "adam_beta2": recipe.adam_beta2,
        "adam_epsilon": recipe.adam_epsilon,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "lr_scheduler_type": recipe.lr_scheduler_type,
        "lr_scheduler_kwargs": dict(recipe.lr_scheduler_kwargs),
        "warmup_steps": recipe.warmup_steps,
        # arithmetic
        "fp16": config.precision is Precision.FP16,
        "bf16": config.precision is Precision.BF16,
        "tf32": config.tf32,
        "torch_compile": compiles,
        "use_cpu": config.hardware.gpu.is_cpu,
        # memory
        "gradient_checkpointing": method.activation_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "ddp_find_unused_parameters": False,
        # The filter reads every micro-batch's loss back from the GPU, which stalls it.
        "logging_nan_inf_filter": False,
        "logging_steps": 10,
        "save_steps": 1000,
        "save_total_limit": 2,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_drop_last": True,
        "seed": 42,
    }
    if deepspeed := deepspeed_config(method, recipe, compiles=config.compiles):
        fields["deepspeed"] = deepspeed
    if fsdp := fsdp_config(method, recipe):
        fields |= {"fsdp": True, "fsdp_config": fsdp}
    return fields


def to_json(fields: dict[str, Any]) -> str:
    """Write fields as JSON: the same text for the same fields, on every machine."""
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"
