"""A training that is stopped and resumed, against one that is not: the same weights in the end."""

import json
from pathlib import Path

import pytest
import torch
from contract.ranks import run_ranks
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from academic_pretraining.benchmarking.checkpoints import MARK, STATE
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.training_arguments import training_arguments_fields

pytestmark = pytest.mark.slow

FAMILIES = ("pythia-160m", "roberta", "vit", "convnext-large-1k", "mamba")
ON_TWO = (Sharding.FSDP_FULL_SHARD, Sharding.ZERO_2)
STEPS = 4


def prepare(folder: Path, model: str, method: Method, ranks: int) -> Path:
    """Write a case: saved every second step, at a rate that tells one step from another."""
    machine = Hardware(num_nodes=1, gpus_per_node=ranks, gpu_type="cpu")
    config = TrainingConfig(hardware=machine, recipe=MODELS[model], method=method)
    fields = training_arguments_fields(config, config.plan_at(2)) | {
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "save_steps": STEPS // 2,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
    }
    case = folder / f"{model}-{method.label}".replace(" ", "")
    case.mkdir()
    (case / "case.json").write_text(json.dumps({"model": model, "fields": fields}))
    return case


@pytest.fixture(scope="module")
def on_one(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    for model in FAMILIES:
        prepare(folder, model, Method(), 1)
    run_ranks("resume.py", folder, world_size=1)
    return folder


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for sharding in ON_TWO:
        prepare(folder, "pythia-160m", Method(sharding=sharding), 2)
    run_ranks("resume.py", folder)
    return folder


def weights(checkpoint: Path, scratch: Path) -> dict[str, torch.Tensor]:
    if (shards := checkpoint / "pytorch_model_fsdp_0").exists():
        dcp_to_torch_save(shards, scratch / "whole.pt")
        return torch.load(scratch / "whole.pt")["model"]
    return load_file(checkpoint / "model.safetensors")


def assert_marked(checkpoint: Path) -> None:
    """Every file of every rank is in the mark, written when all were done."""
    files = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file()}
    assert set(json.loads((checkpoint / MARK).read_text())) == files - {MARK}
    assert STATE in files


def assert_alike(case: Path, scratch: Path) -> None:
    for name in ("whole", "resumed"):
        assert_marked(case / name / f"checkpoint-{STEPS}")
    first, whole, resumed = (
        weights(case / name, scratch)
        for name in (
            f"whole/checkpoint-{STEPS // 2}",
            f"whole/checkpoint-{STEPS}",
            f"resumed/checkpoint-{STEPS}",
        )
    )
    assert whole.keys() == resumed.keys() == first.keys()
    # Every weight was on its way.
    assert not any(torch.equal(whole[name], first[name]) for name in whole)
    assert {name for name in whole if not torch.equal(whole[name], resumed[name])} == set()


@pytest.mark.parametrize("model", FAMILIES)
def test_a_resumed_training_comes_to_the_same_weights(model, on_one, tmp_path):
    assert_alike(on_one / f"{model}-naive", tmp_path)


@pytest.mark.parametrize("sharding", ON_TWO, ids=lambda sharding: sharding.value)
def test_so_does_a_sharded_one(sharding, on_two, tmp_path):
    [case] = on_two.glob(f"*{Method(sharding=sharding).label}".replace(" ", ""))
    assert_alike(case, tmp_path)
    for rank in range(2):
        assert (case / "whole" / f"checkpoint-{STEPS}" / f"rng_state_{rank}.pth").exists()
