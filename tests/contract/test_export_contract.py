"""What an exported file really trains, read off the Trainer that it makes in another process."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from contract.mathematics import asked_for
from contract.ranks import run_ranks

from academic_pretraining.config import TrainingConfig, why_invalid
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Backend, Method, MethodSpace, Sharding, method_space
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import ModelRecipe
from experiments.export import export

pytestmark = pytest.mark.slow

TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="cpu")
FAMILIES = ("pythia-160m", "roberta", "vit", "convnext-large-1k", "mamba")
# Every model as plain training; every method for one model of each family.
CASES = [
    (model, method)
    for model, method in itertools.product(MODELS, method_space(MethodSpace.ALL))
    if not why_invalid(TWO, MODELS[model], method)
    and (method in (Method(), Method(free_lunch=True)) or model in FAMILIES)
]


def is_thorough(model: str, method: Method) -> bool:
    """Whether checkpointing and sharding are tried apart for this model, and together for another.

    Under FSDP2 (full) they are tried together for each.
    """
    apart = method.sharding in (Sharding.NONE, Sharding.FSDP_FULL_SHARD)
    return method.activation_checkpointing and not apart and model != FAMILIES[0]


def name_of(model: str, method: Method) -> str:
    return f"{model} {method.label}".replace(" ", "_").replace("+", "and")


@pytest.fixture(scope="module")
def contracts(request, tmp_path_factory) -> Path:
    """Export the cases that tests ask for, and look at what two ranks make of them."""
    folder = tmp_path_factory.mktemp("contract")
    # Other files have cases that are tuples, too.
    needed = asked_for(request, "case", tuple)
    for model, method in (case for case in CASES if case in needed):
        config = TrainingConfig(hardware=TWO, recipe=MODELS[model], method=method)
        export(folder / f"{name_of(model, method)}.json", config, config.plans()[1], [])
    run_ranks("train.py", folder)
    return folder


@pytest.fixture(
    params=[pytest.param(c, marks=[pytest.mark.thorough] * is_thorough(*c)) for c in CASES],
    ids=lambda case: name_of(*case),
)
def case(request, contracts) -> tuple[ModelRecipe, Method, dict[str, Any]]:
    model, method = request.param
    found = [
        json.loads((contracts / f"{name_of(model, method)}.rank{rank}.facts.json").read_text())
        for rank in range(2)
    ]
    assert "error" not in found[0], found[0]["error"]
    assert found[0] == found[1]
    return MODELS[model], method, found[0]


def learning_rate(recipe: ModelRecipe, step: int) -> float:
    """Work the published schedules out by hand."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.max_steps - recipe.warmup_steps)
    match recipe.lr_scheduler_type:
        case "linear":
            return recipe.learning_rate * (1 - done)
        case "cosine":
            return recipe.learning_rate * (1 + math.cos(math.pi * done)) / 2
        case "cosine_with_min_lr":
            floor = recipe.lr_scheduler_kwargs["min_lr_rate"]
            share = floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
            return recipe.learning_rate * share
    raise AssertionError(f"no formula for {recipe.lr_scheduler_type}")


def test_the_optimizer_is_the_recipes(case):
    recipe, _, facts = case
    assert facts["optimizer"] == "torch.AdamW"
    assert sorted(g["weight_decay"] for g in facts["groups"]) == sorted([0.0, recipe.weight_decay])
    for group in facts["groups"]:
        assert group["betas"] == [recipe.adam_beta1, recipe.adam_beta2]
        assert group["eps"] == recipe.adam_epsilon
        assert group["fused"] is True


def test_biases_and_norms_are_not_decayed(case):
    recipe, method, facts = case
    if method.sharding is not Sharding.NONE:
        pytest.skip("a sharded parameter has lost its name")
    plain = [
        set(names)
        for names, group in zip(facts["names"], facts["groups"], strict=True)
        if group["weight_decay"] == 0
    ]
    # transformers 5.17 knows norms by their class or name, and Mamba's last one by neither.
    missed = {"backbone.norm_f.weight"} if recipe.name == "mamba" else set()
    assert set().union(*plain) == set(facts["undecayed"]) - missed
    assert missed <= set(facts["undecayed"])


def test_the_learning_rate_follows_the_published_schedule(case):
    recipe, _, facts = case
    for step, rates in facts["learning rates"].items():
        wanted = learning_rate(recipe, int(step))
        assert rates == pytest.approx([wanted] * len(rates), rel=1e-6, abs=1e-12)
    assert facts["steps"] == recipe.max_steps


def test_the_batch_is_the_recipes(case):
    recipe, _, facts = case
    assert facts["global batch"] == recipe.global_batch_size
    assert facts["micro-batch"] == 2


def test_gradients_are_clipped_as_published(case):
    recipe, _, facts = case
    assert facts["clipping"] == recipe.max_grad_norm


def test_the_arithmetic_is_that_of_a_cpu(case):
    # Half precision needs a GPU; tests/gpu looks there.
    _, _, facts = case
    assert facts["precision"] == "no"
    assert facts["parameter types"] == ["torch.float32"]


def test_the_method_is_in_force(case):
    recipe, method, facts = case
    backend, stage = method.sharding.backend, method.sharding.stage
    assert facts["compiled"] == (method.free_lunch and recipe.supports_compile)
    assert (facts["checkpointed"] > 0) == method.activation_checkpointing
    assert facts["ZeRO"] == (stage if backend is Backend.DEEPSPEED else 0)
    assert facts["gathered whole"] == [method.sharding is Sharding.ZERO_3]
    assert facts["layers sharded apart"] == [backend is Backend.FSDP]
    assert facts["resharded"] == ([stage == 3] if backend is Backend.FSDP else [])
    assert facts["DDP"] == (backend is None)
    kernel = recipe.attention_kernel
    if kernel is not None:
        assert facts["attention"] == (kernel if method.free_lunch else "eager")


EXPORT_ALL = """
import hashlib, sys
from pathlib import Path
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.gpus import GPUS, Hardware
from academic_pretraining.methods import MethodSpace
from academic_pretraining.models import MODELS
from experiments.export import export

digest = hashlib.sha256()
output = Path(sys.argv[1]) / "a.json"
# One of each arithmetic.
kinds = {(gpu.is_cpu, gpu.supports_bf16, gpu.supports_tf32): name for name, gpu in GPUS.items()}
for gpu in kinds.values():
    hardware = Hardware(num_nodes=1, gpus_per_node=2, gpu_type=gpu)
    for recipe in MODELS.values():
        for method, reasons in grid(hardware, recipe, MethodSpace.ALL):
            if not reasons:
                config = TrainingConfig(hardware=hardware, recipe=recipe, method=method)
                export(output, config, config.plans()[0], [])
                digest.update(output.read_bytes())
                digest.update(output.with_suffix(".setting.json").read_bytes())
print(digest.hexdigest())
"""


def test_every_export_has_the_same_bytes_on_another_machine(tmp_path):
    """Another hash seed, locale, folder, home and number of visible GPUs."""
    surroundings = (
        {"PYTHONHASHSEED": "1", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "", "HOME": "/nowhere"},
        {
            "PYTHONHASHSEED": "2",
            "LC_ALL": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": "0,1",
            "TZ": "Asia/Tokyo",
        },
    )
    digests = []
    for number, changes in enumerate(surroundings):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, "-c", EXPORT_ALL, folder]
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | changes,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(done.stdout)
    assert digests[0] == digests[1] != ""
