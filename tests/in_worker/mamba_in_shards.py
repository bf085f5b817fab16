"""Build a small Mamba on one rank under ZeRO-3, and print how its steps were initialised.

A program of its own, because DeepSpeed cannot be taken back. Its arguments are the architecture,
a folder, and `helped` or `unhelped` by `_whole_mixers`.
"""

import contextlib
import dataclasses
import json
import sys

import deepspeed
import torch
from transformers import TrainingArguments

from academic_pretraining.benchmarking import build
from academic_pretraining.benchmarking.cpu import allow_sharding_on_cpu
from academic_pretraining.deepspeed import deepspeed_config
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import MODELS


def main(architecture: str, folder: str, how: str) -> None:
    recipe = dataclasses.replace(MODELS["mamba"], architecture=json.loads(architecture))
    sharded = deepspeed_config(Method(sharding=Sharding.ZERO_3), recipe, compiles=False)
    # Kept, because transformers shards only as long as the arguments are alive.
    arguments = TrainingArguments(output_dir=folder, use_cpu=True, deepspeed=sharded)
    allow_sharding_on_cpu(arguments)
    if how == "unhelped":
        build._whole_mixers = contextlib.nullcontext
    model = build.build_model(recipe, attention=None)
    biases = [p for name, p in model.named_parameters() if name.endswith("dt_proj.bias")]
    held = sum(bias.numel() for bias in biases)
    with deepspeed.zero.GatheredParameters(biases):
        steps = torch.nn.functional.softplus(torch.stack(list[torch.Tensor](biases)))
    print("FOUND", json.dumps([held, steps.tolist()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
