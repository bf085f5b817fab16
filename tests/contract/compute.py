"""One rank: trains each case for three steps and writes down what was computed.

`compute.py FOLDER`: FOLDER/cases.json lists the cases; `mathematics.py` writes and reads. Rank 0
writes NAME.json with losses and types and NAME.safetensors with all parameters before and after;
a rank on which a case fails writes NAME.error, and the next case follows.
"""

import gc
import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback, TrainingArguments
from twins import twin

from academic_pretraining.benchmarking.build import build_model_for, synthetic_dataset
from academic_pretraining.benchmarking.cpu import allow_sharding_on_cpu

# A gradient of 64 still fits into fp16; the usual 65,536 skips the first steps.
FIRST_LOSS_SCALE_POWER = 10

_LINEAR = torch.nn.functional.linear


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
        wrapped: Any = self.trainer.model_wrapped
        whole: Any = self.trainer.accelerator.get_state_dict(wrapped) or {}
        if hasattr(wrapped, "zero_optimization_stage"):
            # What the optimizer carries on with, where the model holds it rounded.
            inner: Any = self.trainer.accelerator.unwrap_model(wrapped)
            for name, parameter in inner.named_parameters(remove_duplicate=False):
                if parameter.dtype != torch.float32:
                    master = safe_get_full_fp32_param(parameter)
                    assert master is not None, f"{name} has no fp32 master"
                    # ZeRO-3 gathers the others on rank 0 alone.
                    whole[name] = master
        for name, tensor in whole.items():
            self.kept[f"{when}.{name}"] = tensor.detach().cpu().clone().contiguous()


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # gloo beside NCCL: FSDP reduces what it offloads to the host.
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timedelta(seconds=120))
    else:
        # Long enough for DeepSpeed's extension to be built on the other rank.
        dist.init_process_group("gloo", timeout=timedelta(seconds=400))
    # What is imported is no garbage, and looking through it takes half a case's time.
    gc.freeze()
    for case in json.loads((folder / "cases.json").read_text()):
        before = dict(os.environ)
        began = time.monotonic()
        try:
            facts, parameters = compute(case, folder / "out")
            if rank == 0:
                (folder / f"{case['name']}.json").write_text(json.dumps(facts))
                save_file(parameters, folder / f"{case['name']}.safetensors")
        except Exception:
            (folder / f"{case['name']}.error").write_text(traceback.format_exc())
        print(f"{case['name']}: {time.monotonic() - began:.1f} s", flush=True)
        # The next case may begin with what rank 0 has just written; a tensor of the CPU, for gloo.
        dist.all_reduce(torch.zeros(1))
        AcceleratorState._reset_state(reset_partial_state=True)
        # ZeRO-3 leaves its own behind, which torch 2.11 compiles wrongly.
        torch.nn.functional.linear = _LINEAR
        os.environ.clear()
        os.environ.update(before)
        torch.compiler.reset()
        gc.collect()
    dist.destroy_process_group()


def compute(case: dict[str, Any], output: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    # A learning rate from the first step on, and every step's loss.
    fields = case["fields"] | {
        "output_dir": str(output),
        "max_steps": 3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    if fields["fp16"] and "deepspeed" in fields:
        fields["deepspeed"]["fp16"]["initial_scale_power"] = FIRST_LOSS_SCALE_POWER
    arguments = TrainingArguments(**fields)
    allow_sharding_on_cpu(arguments)
    recipe = twin(case["model"], dropout=False)
    model = build_model_for(
        arguments, recipe, attention=case["attention"], free_lunch=case["free_lunch"]
    )
    if case["weights"]:
        _set_weights(model, output.parent / case["weights"])
    elif case["round_to"]:
        _round_weights(model, getattr(torch, case["round_to"]))
    keep = Keep()
    trainer = Trainer(
        model=model, args=arguments, train_dataset=synthetic_dataset(recipe, 64), callbacks=[keep]
    )
    keep.trainer = trainer
    # accelerate 1.15 turns TF32 on for whatever is compiled in fp32, and torch 2.11 leaves it on
    # for convolutions.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fields["tf32"]
    if scaler := trainer.accelerator.scaler:
        scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**FIRST_LOSS_SCALE_POWER})
    trainer.train()
    losses = [
        {name: entry[name] for name in ("loss", "grad_norm")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return {"losses": losses, **_types(trainer)}, keep.kept


def _types(trainer: Trainer) -> dict[str, list[str]]:
    """Say in which types parameters lie, and FSDP computes and reduces."""
    wrapped: Any = trainer.model_wrapped
    units: list[Any] = [m for m in wrapped.modules() if isinstance(m, FSDPModule)]
    # There is no public getter for the policy of a unit.
    policies = [unit._get_fsdp_state()._mp_policy for unit in units]
    return {
        "parameters": sorted({str(p.dtype) for p in wrapped.parameters()}),
        "computed": sorted({str(policy.param_dtype) for policy in policies}),
        "reduced": sorted({str(policy.reduce_dtype) for policy in policies}),
    }


def _set_weights(model: nn.Module, path: Path) -> None:
    """Begin where another case began: ZeRO-3 draws in another order, with the same seed."""
    weights = load_file(path)
    for name, parameter in model.named_parameters():
        # Does nothing where a parameter is whole.
        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if parameter.numel():
                parameter.copy_(weights[f"before.{name}"])


def _round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Begin with weights that the half precision holds exactly, as DeepSpeed rounds them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
