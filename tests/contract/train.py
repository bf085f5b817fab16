"""One rank: builds the Trainer of each exported file and writes down what it will really do.

`train.py FOLDER`: FOLDER holds NAME.json with TrainingArguments and NAME.setting.json, one pair a
case; the rank writes NAME.rankN.facts.json. Torch's variables say which rank this is.
"""

import contextlib
import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from deepspeed.utils import z3_leaf_module
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback, TrainingArguments
from twins import twin

from academic_pretraining.benchmarking.build import build_model_for, synthetic_dataset
from academic_pretraining.benchmarking.cpu import allow_sharding_on_cpu
from academic_pretraining.models.recipe import ModelRecipe


class SeenEnough(Exception):  # noqa: N818
    """Everything is wrapped, and a micro-batch has gone forward and backward."""


class Look(TrainerCallback):
    """Ends a training in its first step."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        # What is compiled is seen; compiling it would take most of the time.
        torch._dynamo.config.disable = True

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        raise SeenEnough


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    # What is imported is no garbage, and looking through it takes half a case's time.
    gc.freeze()
    for path in sorted(folder.glob("*.setting.json")):
        name = path.name.removesuffix(".setting.json")
        before = dict(os.environ)
        try:
            facts = look(folder / f"{name}.json", json.loads(path.read_text()), folder / "out")
        except Exception:
            facts = {"error": traceback.format_exc()}
        (folder / f"{name}.rank{rank}.facts.json").write_text(json.dumps(facts))
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.clear()
        os.environ.update(before)
        torch._dynamo.config.disable = False
        torch.compiler.reset()
        gc.collect()


def look(arguments_file: Path, setting: dict[str, Any], output: Path) -> dict[str, Any]:
    fields = json.loads(arguments_file.read_text())
    arguments = TrainingArguments(**fields, output_dir=str(output))
    allow_sharding_on_cpu(arguments)
    recipe = twin(setting["model"])
    model = build_model_for(
        arguments, recipe, attention=setting["attention"], free_lunch=setting["free_lunch"]
    )
    undecayed = sorted(_without_decay(model))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=synthetic_dataset(recipe, 2 * recipe.global_batch_size),
        callbacks=[Look()],
    )
    if not fields.get("deepspeed") and not fields.get("fsdp"):
        # Before anything is wrapped, while parameters still have names.
        optimizer: Any = trainer.create_optimizer()
        groups = [[names[id(p)] for p in g["params"]] for g in optimizer.param_groups]
        trainer.optimizer = None
    else:
        groups = None
    with contextlib.suppress(SeenEnough):
        trainer.train()
        raise AssertionError("the training ended by itself")
    return _facts(trainer, recipe, undecayed, groups)


def _without_decay(model: nn.Module) -> set[str]:
    """Biases, and the weights of normalisation: what AdamW's authors leave out."""
    found = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or "norm" in type(module).__name__.lower()
    }
    # Here a shared parameter has one name.
    return {name for name, parameter in model.named_parameters() if id(parameter) in found}


def _facts(
    trainer: Trainer, recipe: ModelRecipe, undecayed: list[str], groups: list[list[str]] | None
) -> dict[str, Any]:
    arguments = trainer.args
    wrapped: Any = trainer.model_wrapped
    inner: Any = getattr(wrapped, "_orig_mod", wrapped)
    optimizer: Any = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    scheduler: Any = trainer.lr_scheduler
    scheduler = getattr(scheduler, "scheduler", scheduler)
    engine = inner if hasattr(inner, "zero_optimization_stage") else None
    loader: Any = trainer.get_train_dataloader()
    model: Any = trainer.model
    units: list[Any] = [m for m in wrapped.modules() if isinstance(m, FSDPModule)]
    # FSDP2 puts its own name before that of the class.
    layers = [m for m in wrapped.modules() if type(m).__name__.endswith(recipe.layer_class)]
    groups_of_layers = [
        unit._get_fsdp_state()._fsdp_param_group
        for unit in units
        if sum(type(m).__name__.endswith(recipe.layer_class) for m in unit.modules()) == 1
    ]
    warmup = recipe.warmup_steps
    last = arguments.max_steps - 1
    return {
        "optimizer": f"{type(optimizer).__module__.split('.')[0]}.{type(optimizer).__name__}",
        "groups": [
            {n: g.get(n) for n in ("betas", "eps", "weight_decay", "initial_lr", "fused")}
            for g in optimizer.param_groups
        ],
        "names": groups,
        "undecayed": undecayed,
        "learning rates": {
            step: [
                base * factor(step)
                for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            ]
            for step in (0, warmup // 2, warmup, (warmup + last) // 2, last)
        },
        "clipping": engine.gradient_clipping() if engine else arguments.max_grad_norm,
        "precision": trainer.accelerator.mixed_precision,
        "parameter types": sorted({str(p.dtype) for p in wrapped.parameters()}),
        "global batch": (
            engine.train_batch_size()
            if engine
            else trainer._train_batch_size
            * trainer.accelerator.gradient_accumulation_steps
            * arguments.gradient_accumulation_steps
            * trainer.accelerator.num_processes
        ),
        "micro-batch": loader.total_batch_size // trainer.accelerator.num_processes,
        "steps": trainer.state.max_steps,
        "compiled": isinstance(wrapped, torch._dynamo.OptimizedModule)
        or bool(engine and engine.is_compiled),
        "checkpointed": sum(
            getattr(m, "gradient_checkpointing", False) is True for m in wrapped.modules()
        ),
        "ZeRO": engine.zero_optimization_stage() if engine else 0,
        "gathered whole": sorted({z3_leaf_module(m) for m in layers}),
        "layers sharded apart": sorted({isinstance(m, FSDPModule) for m in layers}),
        "resharded": sorted({bool(g.post_forward_mesh_info) for g in groups_of_layers if g}),
        "DDP": isinstance(inner, nn.parallel.DistributedDataParallel),
        "attention": getattr(model.config, "_attn_implementation", None),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
