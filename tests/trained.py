"""The methods that the fixture `recorded` trains for several test files, and a small training."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel, Trainer, TrainingArguments

from academic_pretraining.benchmarking.build import synthetic_dataset
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models.recipe import ModelRecipe

NAIVE = Method()
COMPILED = Method(free_lunch=True)
ZERO_1 = Method(sharding=Sharding.ZERO_1, activation_checkpointing=True)
ZERO_2 = Method(sharding=Sharding.ZERO_2)
FSDP_GRAD = Method(sharding=Sharding.FSDP_SHARD_GRAD_OP)
FSDP_FULL = Method(sharding=Sharding.FSDP_FULL_SHARD, activation_checkpointing=True)
ZERO_3 = Method(sharding=Sharding.ZERO_3, activation_checkpointing=True)
ZERO_2_COMPILED = Method(sharding=Sharding.ZERO_2, free_lunch=True)
FSDP_COMPILED = Method(sharding=Sharding.FSDP_FULL_SHARD, free_lunch=True)
EVERY = (
    *(NAIVE, COMPILED, ZERO_1, ZERO_2, FSDP_GRAD, FSDP_FULL, ZERO_3),
    # tests/contract trains sharded and compiled ones in every run.
    pytest.param(ZERO_2_COMPILED, marks=pytest.mark.thorough),
    pytest.param(FSDP_COMPILED, marks=pytest.mark.thorough),
)

every_method = pytest.mark.parametrize("method", EVERY, ids=lambda method: method.label)


def train_in_this_process(folder: Path, recipe: ModelRecipe, model: PreTrainedModel) -> Trainer:
    """Give a Trainer of one process, after a step."""
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=1, report_to="none", disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=synthetic_dataset(recipe, 8))
    trainer.train()
    return trainer
