import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import transformers

from academic_pretraining.config import (
    TrainingConfig,
    config_from_dict,
    config_to_dict,
    grid,
)
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Backend, Method, MethodSpace
from academic_pretraining.models import MODELS
from academic_pretraining.training_arguments import to_json, training_arguments_fields

FIELD_NAMES = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
RECIPE_FIELDS = (
    "learning_rate",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "max_steps",
)

every_model = pytest.mark.parametrize("model", MODELS)
every_model_on_one_and_two = pytest.mark.parametrize(
    ("model", "gpus"), [(model, gpus) for model in MODELS for gpus in (1, 2)]
)


def config_of(model: str, method: Method, gpus: int = 1, gpu_type: str = "h200") -> TrainingConfig:
    machine = Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type=gpu_type)
    return TrainingConfig(hardware=machine, recipe=MODELS[model], method=method)


def configs(model: str, gpus: int, gpu_type: str = "h200") -> Iterator[TrainingConfig]:
    """Every valid method of the grid."""
    machine = Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type=gpu_type)
    for method, reasons in grid(machine, MODELS[model], MethodSpace.ALL):
        if not reasons:
            yield config_of(model, method, gpus, gpu_type)


def fields_of(config: TrainingConfig, **overrides) -> dict:
    return training_arguments_fields(config, config.plan_at(4), **overrides)


def types_in(value) -> set[type]:
    if type(value) is dict:
        return {dict}.union(*(types_in(v) for item in value.items() for v in item))
    if type(value) is list:
        return {list}.union(*map(types_in, value))
    return {type(value)}


def names_in(value) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(names_in, value.values()))
    return set()


def digest_of_everything() -> str:
    """Hash the text of all fields, for another process to compare."""
    everything = [
        to_json(fields_of(config))
        for model in MODELS
        for gpus in (1, 2)
        for config in configs(model, gpus)
    ]
    return hashlib.sha256("".join(everything).encode()).hexdigest()


@every_model_on_one_and_two
def test_fields_are_plain_json(model, gpus):
    for config in configs(model, gpus):
        fields = fields_of(config)
        assert types_in(fields) <= {str, int, float, bool, list, dict}
        assert json.loads(to_json(fields)) == fields


@every_model_on_one_and_two
def test_every_field_is_the_trainers(model, gpus):
    for config in configs(model, gpus):
        assert set(fields_of(config)) <= FIELD_NAMES - {"output_dir"}


@every_model_on_one_and_two
def test_a_configuration_read_back_gives_the_same_text(model, gpus):
    for config in configs(model, gpus):
        back = config_from_dict(json.loads(json.dumps(config_to_dict(config))))
        assert to_json(fields_of(back)) == to_json(fields_of(config))


def test_another_process_gives_the_same_text():
    code = (
        "import hashlib, sys\n"
        "from academic_pretraining.config import *\n"
        "from academic_pretraining.gpus import Hardware\n"
        "from academic_pretraining.methods import MethodSpace\n"
        "from academic_pretraining.models import MODELS\n"
        "from academic_pretraining.training_arguments import *\n"
        "digest = hashlib.sha256()\n"
        "for recipe in MODELS.values():\n"
        "    for gpus in (1, 2):\n"
        "        machine = Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type='h200')\n"
        "        for method, reasons in grid(machine, recipe, MethodSpace.ALL):\n"
        "            if not reasons:\n"
        "                c = TrainingConfig(hardware=machine, recipe=recipe, method=method)\n"
        "                fields = training_arguments_fields(c, c.plan_at(4))\n"
        "                digest.update(to_json(fields).encode())\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "print(digest.hexdigest())\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digest_of_everything()


@every_model_on_one_and_two
def test_each_call_builds_afresh(model, gpus):
    for config in configs(model, gpus):
        fields = fields_of(config)
        before = to_json(fields)
        for value in fields.values():
            for inner in (value, *(value.values() if isinstance(value, dict) else ())):
                if isinstance(inner, dict):
                    inner["spoilt"] = True
                elif isinstance(inner, list):
                    inner.append("spoilt")
        assert "spoilt" in names_in(fields)
        assert to_json(fields_of(config)) == before


@every_model_on_one_and_two
def test_the_recipe_trains_as_published(model, gpus):
    recipe = MODELS[model]
    for config in configs(model, gpus):
        fields = fields_of(config)
        assert {name: fields[name] for name in RECIPE_FIELDS} == {
            name: getattr(recipe, name) for name in RECIPE_FIELDS
        }
        assert fields["optim"] == "adamw_torch_fused"


@every_model_on_one_and_two
def test_the_plan_is_what_trains(model, gpus):
    for config in configs(model, gpus):
        for plan in config.plans():
            fields = training_arguments_fields(config, plan)
            product = fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"]
            assert fields["per_device_train_batch_size"] == plan.micro_batch_size
            assert product * gpus == config.recipe.global_batch_size


@every_model_on_one_and_two
def test_precision_is_the_recipes_and_no_other_dtype_is_named(model, gpus):
    expected = MODELS[model].precision.value
    for config in configs(model, gpus):
        fields = fields_of(config)
        assert [name for name in ("fp16", "bf16") if fields[name]] == [expected][
            : expected != "fp32"
        ]
        assert not [name for name in names_in(fields) if "dtype" in name or "full_eval" in name]
        assert fields["use_cpu"] is False


@every_model_on_one_and_two
def test_the_method_is_in_the_fields(model, gpus):
    for config in configs(model, gpus):
        fields, method = fields_of(config), config.method
        backend = method.sharding.backend
        in_fsdp = backend is Backend.FSDP
        assert fields["tf32"] is method.free_lunch
        assert fields["torch_compile"] is (method.free_lunch and model != "mamba")
        assert ("deepspeed" in fields) == (backend is Backend.DEEPSPEED)
        assert fields.get("fsdp", False) is in_fsdp
        assert fields["gradient_checkpointing"] is method.activation_checkpointing
        assert not names_in(fields) & {"optimizer", "scheduler"}


@pytest.mark.parametrize("torch_compile", [True, False])
def test_compilation_can_be_overruled(torch_compile):
    config = config_of("pythia-160m", Method(free_lunch=not torch_compile))
    fields = fields_of(config, torch_compile=torch_compile)
    assert fields == fields_of(config) | {"torch_compile": torch_compile}
    assert fields != fields_of(config)


@pytest.mark.usefixtures("own_trainer_state")
@pytest.mark.parametrize("gpus", [1, 2])
@every_model
def test_the_trainer_takes_the_exported_json(model, gpus, tmp_path):
    recipe = MODELS[model]
    for config in configs(model, gpus, "cpu"):
        fields = json.loads(to_json(fields_of(config)))
        arguments = transformers.TrainingArguments(output_dir=str(tmp_path), **fields)
        for name in {*fields} - {"fsdp_config", "deepspeed", "report_to"}:
            assert getattr(arguments, name) == fields[name], name
        assert arguments.report_to == []
        assert arguments.get_warmup_steps(recipe.max_steps) == recipe.warmup_steps
        assert arguments.device.type == "cpu"
        assert (arguments.fp16, arguments.bf16) == (False, False)
        if "deepspeed" in fields:
            resolved = arguments.hf_deepspeed_config.config
            assert resolved["gradient_clipping"] == recipe.max_grad_norm
            assert resolved["fp16"]["enabled"] is resolved["bf16"]["enabled"] is False
