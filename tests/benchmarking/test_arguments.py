import json
import os
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from transformers import TrainingArguments

from academic_pretraining.benchmarking.arguments import build, check_fields
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.errors import InvalidFileError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import MethodSpace
from academic_pretraining.models import MODELS
from academic_pretraining.training_arguments import training_arguments_fields

WRITE = "write the file with scripts/to_training_arguments.py"
MACHINES = [
    Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200"),
    Hardware(num_nodes=1, gpus_per_node=2, gpu_type="cpu"),
]


@pytest.mark.parametrize("hardware", MACHINES, ids=lambda hardware: hardware.gpu_type)
@pytest.mark.parametrize("model", ["pythia-160m", "mamba", "vit", "convnext-large-1k", "roberta"])
def test_whatever_is_exported_is_accepted_on_any_machine(hardware, model):
    before = dict(os.environ)
    for method, reasons in grid(hardware, MODELS[model], MethodSpace.ALL):
        if not reasons:
            config = TrainingConfig(hardware=hardware, recipe=MODELS[model], method=method)
            check_fields(training_arguments_fields(config, config.plan_at(8)), Path("a.json"))
    assert dict(os.environ) == before
    assert not AcceleratorState._shared_state


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"sharpness": 1}, "a.json holds 'sharpness', which is no field of TrainingArguments: "),
        ({"seed": "1"}, "a.json says seed is '1', but it must be a number: "),
        ({"seed": 1.5}, "a.json says seed is 1.5, but it must be a whole number: "),
        ({"seed": -1}, "a.json says seed is -1, but it must be at least 0: "),
        ({"seed": 2**32}, "a.json says seed is 4294967296, but it must be at most 4,294,967,295: "),
        ({"max_steps": -2}, "a.json says max_steps is -2, but it must be at least -1: "),
        ({"adam_beta1": 1}, "a.json says adam_beta1 is 1, but it must be below 1: "),
        ({"bf16": "no"}, "a.json says bf16 is 'no', but it must be true or false: "),
        ({"tf32": 1}, "a.json says tf32 is 1, but it must be bool or null: "),
        ({"run_name": 1}, "a.json says run_name is 1, but it must be str or null: "),
        (
            {"gradient_accumulation_steps": 0},
            "a.json says gradient_accumulation_steps is 0, but it must be at least 1: ",
        ),
        (
            {"optim": "adam"},
            "TrainingArguments refuse a.json (ValueError: adam is not a valid OptimizerNames, ",
        ),
        (
            {"lr_scheduler_kwargs": {"sharpness": 1}},
            "the Trainer refuses a.json (TypeError: get_linear_schedule_with_warmup() got an ",
        ),
    ],
    ids=str,
)
def test_what_cannot_train_is_refused_before_anything_starts(fields, why):
    with pytest.raises(InvalidFileError) as caught:
        check_fields(fields, Path("a.json"))
    assert str(caught.value).startswith(why)
    assert str(caught.value).endswith(WRITE)


def test_what_only_the_worker_can_say_is_said_by_it(tmp_path, own_trainer_state):
    fields = {
        "deepspeed": {"zero_optimization": {"stage": 1}, "optimizer": 5},
        "output_dir": str(tmp_path),
        "use_cpu": True,
    }
    check_fields(fields, Path("a.json"))
    with pytest.raises(InvalidFileError, match=r"^TrainingArguments refuse a\.json \("):
        build(fields, Path("a.json"))


def test_defaults_as_transformers_writes_them_pass(own_trainer_state):
    written = json.loads(TrainingArguments(output_dir="x", use_cpu=True).to_json_string())
    check_fields(written, Path("a.json"))
    check_fields({"include_for_metrics": ["loss"], "seed": 3_000_000_000}, Path("a.json"))
    check_fields({"ddp_backend": "nccl"}, Path("a.json"))


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "RANK"])
def test_a_launchers_variables_are_not_waited_for(monkeypatch, name):
    monkeypatch.setenv(name, "8")
    check_fields({"seed": 1}, Path("a.json"))
    assert os.environ[name] == "8"
