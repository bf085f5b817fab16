"""Train a small model on one rank, sharded, and print what its gradients were and what of it ran.

A program of its own, for the hooks of FSDP2 and ZeRO-3. Its arguments are a model, a sharding
method, `checkpointing`, a backend of torch.compile and `unhelped` by `compile_recomputed_layers`,
as they apply, and a folder.
"""

import json
import sys
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from twins import twin

from academic_pretraining.benchmarking import build
from academic_pretraining.benchmarking.cpu import allow_sharding_on_cpu
from academic_pretraining.benchmarking.failures import classify
from academic_pretraining.benchmarking.in_force import check_in_force
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import MeasurementError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.training_arguments import training_arguments_fields

# The first makes graphs alone, the second also those of the backward pass, the last their code.
BACKENDS = ("eager", "aot_eager", "inductor")


def main(model: str, sharding: str, *more: str) -> None:
    *how, folder = more
    if "unhelped" in how:
        build.compile_recomputed_layers = lambda *args, **kwargs: None
    backend = next((name for name in how if name in BACKENDS), None)
    torch.distributed.init_process_group("gloo")
    method = Method(
        free_lunch=backend is not None,
        activation_checkpointing="checkpointing" in how,
        sharding=Sharding(sharding),
    )
    config = TrainingConfig(
        hardware=Hardware(num_nodes=1, gpus_per_node=2, gpu_type="cpu"),
        recipe=twin(model),
        method=method,
    )
    fields = training_arguments_fields(config, config.plan_at(2)) | {
        "output_dir": folder,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    if backend:
        fields["torch_compile_backend"] = backend
    arguments = TrainingArguments(**fields)
    allow_sharding_on_cpu(arguments)
    trainer = Trainer(
        model=build.build_model_for(
            arguments, config.recipe, attention=config.attention, free_lunch=method.free_lunch
        ),
        args=arguments,
        train_dataset=build.synthetic_dataset(config.recipe, 64),
    )
    # The same numbers are drawn whatever building took.
    torch.manual_seed(0)
    trainer.train()
    verdict = ""
    try:
        check_in_force(trainer, config, compiled=method.free_lunch)
    except MeasurementError as error:
        verdict = str(error).partition(": not in force: ")[2] + f" ({classify(error).outcome})"
    logged: Any = [entry for entry in trainer.state.log_history if "loss" in entry]
    steps = [[float(entry["loss"]), float(entry["grad_norm"])] for entry in logged]
    print("FOUND", json.dumps({"steps": steps, "verdict": verdict}))


if __name__ == "__main__":
    main(*sys.argv[1:])
