"""A training that is stopped and resumed, against one that is not: the same weights in the end."""

import json
from pathlib import Path

import pytest
import torch
from contract.ranks import run_ranks
from contract.resumed import STEPS, prepare, weights_on_the_way

from academic_pretraining.benchmarking.checkpoints import MARK, STATE
from academic_pretraining.methods import Method, Sharding

pytestmark = pytest.mark.slow

FAMILIES = ("pythia-160m", "roberta", "vit", "convnext-large-1k", "mamba")
ON_TWO = (Sharding.NONE, Sharding.FSDP_FULL_SHARD, Sharding.ZERO_2)


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


def assert_marked(checkpoint: Path) -> None:
    """Every file of every rank is in the mark, written when all were done."""
    files = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file()}
    assert set(json.loads((checkpoint / MARK).read_text())) == files - {MARK}
    assert STATE in files


def assert_alike(case: Path, scratch: Path) -> None:
    for name in ("whole", "resumed"):
        assert_marked(case / name / f"checkpoint-{STEPS}")
    first, whole, resumed = weights_on_the_way(case, scratch)
    # Every weight was on its way.
    assert not any(torch.equal(whole[name], first[name]) for name in whole)
    assert {name for name in whole if not torch.equal(whole[name], resumed[name])} == set()


@pytest.mark.parametrize("model", FAMILIES)
def test_a_resumed_training_comes_to_the_same_weights(model, on_one, tmp_path):
    assert_alike(on_one / f"{model}-naive", tmp_path)


@pytest.mark.parametrize("sharding", ON_TWO, ids=lambda sharding: sharding.value)
def test_so_does_one_of_two_ranks(sharding, on_two, tmp_path):
    [case] = on_two.glob(f"*{Method(sharding=sharding).label}".replace(" ", ""))
    assert_alike(case, tmp_path)
    for rank in range(2):
        assert (case / "whole" / f"checkpoint-{STEPS}" / f"rng_state_{rank}.pth").exists()
