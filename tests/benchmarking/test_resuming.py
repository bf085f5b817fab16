from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from academic_pretraining.benchmarking.resuming import ready_to_load


@pytest.fixture
def scaled(own_trainer_state) -> Any:
    """A Trainer's parts in fp16, before its first step."""
    Accelerator(cpu=True)
    model, scaler = torch.nn.Linear(2, 1), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return SimpleNamespace(
        model=model,
        optimizer=AcceleratedOptimizer(optimizer, scaler=scaler),
        accelerator=SimpleNamespace(scaler=scaler),
        args=SimpleNamespace(fsdp=True, device=torch.device("cpu")),
    )


def test_an_optimizer_under_a_scaler_can_be_loaded_into(scaled):
    ready_to_load(scaled)
    before = [parameter.clone() for parameter in scaled.model.parameters()]
    state = get_optimizer_state_dict(scaled.model, scaled.optimizer)
    assert set(state["state"]) == {"weight", "bias"}
    assert all(map(torch.equal, before, scaled.model.parameters()))
    # The checkpoint's scale comes after it.
    scaled.accelerator.scaler.load_state_dict(
        scaled.accelerator.scaler.state_dict() | {"scale": 128.0}
    )
    assert scaled.accelerator.scaler.get_scale() == 128.0


def test_without_help_it_cannot(scaled):
    # When this fails, resuming.py can go.
    with pytest.raises(AssertionError, match="_scale is None"):
        get_optimizer_state_dict(scaled.model, scaled.optimizer)


def test_a_cpu_is_known_by_no_number(tmp_path):
    # When this fails, half of ready_to_load can go.
    torch.save(torch.zeros(1), tmp_path / "moments.pt")
    with pytest.raises(RuntimeError, match="cpu:0"):
        torch.load(tmp_path / "moments.pt", map_location=torch.device("cpu", 0))


@pytest.mark.parametrize(("fsdp", "scaler"), [(True, None), (False, torch.amp.GradScaler("cpu"))])
def test_others_are_left_alone(fsdp, scaler):
    device = torch.device("cpu")
    parts = {
        "accelerator": SimpleNamespace(scaler=scaler),
        "args": SimpleNamespace(fsdp=fsdp, device=device),
    }
    before = scaler and scaler.state_dict()
    trainer: Any = SimpleNamespace(**parts)
    ready_to_load(trainer)
    assert (scaler and scaler.state_dict()) == before
    assert scaler is None or scaler._scale is None
