import json
from pathlib import Path

import pytest
import torch

from academic_pretraining.benchmarking.checkpoints import STATE, mark


@pytest.fixture
def save(tmp_path):
    """Write a checkpoint as the Trainer does."""

    def write(step: int, *, marked: bool = True) -> Path:
        path = tmp_path / f"checkpoint-{step}"
        (path / "global_step2").mkdir(parents=True)
        for name in ("optimizer.pt", "rng_state_0.pth", "global_step2/states.pt"):
            torch.save(torch.zeros(100), path / name)
        (path / STATE).write_text(json.dumps({"global_step": step, "epoch": step / 10}))
        if marked:
            mark(path)
        return path

    return write
