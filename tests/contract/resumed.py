"""Cases for `resume.py`, and the weights that it comes to."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import MODELS
from academic_pretraining.training_arguments import training_arguments_fields

STEPS = 4


def prepare(
    folder: Path,
    model: str,
    method: Method,
    ranks: int,
    *,
    gpu_type: str = "cpu",
    steps: int = STEPS,
) -> Path:
    """Write a case: saved half-way and in the end, at a rate that tells one step from another."""
    machine = Hardware(num_nodes=1, gpus_per_node=ranks, gpu_type=gpu_type)
    config = TrainingConfig(hardware=machine, recipe=MODELS[model], method=method)
    fields = training_arguments_fields(config, config.plan_at(2)) | {
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "save_steps": steps // 2,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
    }
    case = folder / f"{model}-{method.label}".replace(" ", "")
    case.mkdir()
    (case / "case.json").write_text(json.dumps({"model": model, "fields": fields}))
    return case


def weights(checkpoint: Path, scratch: Path) -> dict[str, torch.Tensor]:
    if (shards := checkpoint / "pytorch_model_fsdp_0").exists():
        dcp_to_torch_save(shards, scratch / "whole.pt")
        return torch.load(scratch / "whole.pt")["model"]
    return load_file(checkpoint / "model.safetensors")


def weights_on_the_way(
    case: Path, scratch: Path, steps: int = STEPS
) -> tuple[dict[str, torch.Tensor], ...]:
    """Read a case's weights: half-way, in the end, and in the end of what was resumed half-way."""
    errors = "\n".join(path.read_text() for path in sorted(case.glob("error*.txt")))
    assert not errors, errors
    first, whole, resumed = (
        weights(case / name, scratch)
        for name in (
            f"whole/checkpoint-{steps // 2}",
            f"whole/checkpoint-{steps}",
            f"resumed/checkpoint-{steps}",
        )
    )
    assert whole.keys() == resumed.keys() == first.keys()
    return first, whole, resumed
