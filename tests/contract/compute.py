"""One rank: trains each case for three steps and writes down what was computed.

`compute.py FOLDER`: FOLDER/cases.json lists the cases. Rank 0 writes NAME.losses.json and
NAME.safetensors with all parameters before and after.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from twins import twin

from academic_pretraining.benchmarking.build import build_model_for, synthetic_dataset
from academic_pretraining.benchmarking.cpu import allow_sharding_on_cpu


class Keep(TrainerCallback):
    """Keeps the parameters, gathered from all ranks, before and after the training."""

    trainer: Trainer

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._keep("before")

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._keep("after")

    def _keep(self, when: str) -> None:
        whole: Any = self.trainer.accelerator.get_state_dict(self.trainer.model_wrapped)
        for name, tensor in (whole or {}).items():
            self.kept[f"{when}.{name}"] = tensor.detach().cpu().clone().contiguous()


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    for case in json.loads((folder / "cases.json").read_text()):
        before = dict(os.environ)
        losses, parameters = compute(case, folder / "out")
        if rank == 0:
            (folder / f"{case['name']}.losses.json").write_text(json.dumps(losses))
            save_file(parameters, folder / f"{case['name']}.safetensors")
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.clear()
        os.environ.update(before)
        torch.compiler.reset()
        gc.collect()


def compute(case: dict[str, Any], output: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    # A learning rate from the first step on, and every step's loss.
    fields = case["fields"] | {
        "output_dir": str(output),
        "max_steps": 3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    arguments = TrainingArguments(**fields)
    allow_sharding_on_cpu(arguments)
    recipe = twin(case["model"], dropout=False)
    model = build_model_for(
        arguments, recipe, attention=case["attention"], free_lunch=case["free_lunch"]
    )
    if case["weights"]:
        _set_weights(model, output.parent / case["weights"])
    keep = Keep()
    trainer = Trainer(
        model=model, args=arguments, train_dataset=synthetic_dataset(recipe, 64), callbacks=[keep]
    )
    keep.trainer = trainer
    trainer.train()
    losses = [
        {name: entry[name] for name in ("loss", "grad_norm")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return losses, keep.kept


def _set_weights(model: nn.Module, path: Path) -> None:
    """Begin where another case began: ZeRO-3 draws in another order, with the same seed."""
    weights = load_file(path)
    for name, parameter in model.named_parameters():
        # Does nothing where a parameter is whole.
        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if parameter.numel():
                parameter.copy_(weights[f"before.{name}"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
