"""A training in fp16 that is stopped and resumed on two GPUs, which a CPU has no scaler for."""

import os

import pytest
import torch
from contract.ranks import run_ranks
from contract.resumed import prepare, weights_on_the_way

from academic_pretraining.gpus import detect_hardware
from academic_pretraining.methods import Method, Sharding

pytestmark = pytest.mark.gpu

# The first steps overflow, until the scale is small enough.
STEPS = 16
FSDP = Sharding.FSDP_FULL_SHARD
METHODS = [
    Method(),
    Method(sharding=FSDP),
    Method(sharding=FSDP, offloading=True),
    Method(sharding=FSDP, activation_checkpointing=True, free_lunch=True),
    Method(sharding=Sharding.ZERO_2),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_a_resumed_training_comes_to_the_same_weights(method, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, and {torch.cuda.device_count()} are here")
    gpu_type = detect_hardware(os.environ).gpu_type
    case = prepare(tmp_path, "pythia-160m", method, 2, gpu_type=gpu_type, steps=STEPS)
    run_ranks("resume.py", tmp_path, gpus=True, timeout_seconds=300.0)
    first, whole, resumed = weights_on_the_way(case, tmp_path, STEPS)
    # Sums on a GPU come in any order; what was not loaded is as far off as the way itself.
    for name, weight in whole.items():
        way = torch.linalg.vector_norm((weight - first[name]).float())
        assert torch.linalg.vector_norm((weight - resumed[name]).float()) < 0.1 * way, name
