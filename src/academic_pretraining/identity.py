"""What is measured under a configuration, by which results are recalled or left."""

import functools
import json
from typing import Any

from academic_pretraining.config import TrainingConfig, config_to_dict, recipe_to_dict
from academic_pretraining.errors import AcademicPretrainingError
from academic_pretraining.methods import Backend
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import without_prose
from academic_pretraining.records import config_of
from academic_pretraining.training_arguments import training_arguments_fields

_STAGE = "ConvNextStage"

LIBRARIES = ("torch", "transformers", "accelerate", "deepspeed")
"""Distributions whose versions decide every measurement; a model's kernels come on top."""


def is_current(recipe: dict[str, Any]) -> bool:
    """Whether a record's recipe, prose apart, is the one in `MODELS`."""
    return recipe["name"] in MODELS and without_prose(recipe) == _current(recipe["name"])


def identity_of(config: TrainingConfig) -> dict[str, Any]:
    """Say what is measured, as a record's key does beside versions and limits.

    Recipe, method, hardware and resolved arguments count; prose does not, nor does a tolerance
    beside the global batch that it led to.
    """
    identity = config_to_dict(config)
    del identity["batch_tolerance"]
    identity["global_batch_size"] = config.global_batch_size
    identity["recipe"] = without_prose(identity["recipe"])
    identity["arguments"] = training_arguments_fields(config, config.plan_at(1))
    if len(config.compile_choices) > 1:
        identity["compile"] = config.compile_choices
    if config.compiles_layers_apart:
        # Not in the arguments; before, what is recomputed within hooks was not compiled.
        identity["recomputed_layers"] = "compiled"
    if config.method.sharding.backend is Backend.FSDP and config.recipe.layer_class == _STAGE:
        # Before, the first stage alone was sharded apart.
        identity["sharded_stages"] = "all"
    return identity


def has_current_arguments(record: dict[str, Any]) -> bool:
    """Whether a record's key holds the training arguments that would be exported now.

    What else identifies a measurement counts as well, such as how it is compiled; versions and
    limits do not.
    """
    try:
        key = json.loads(record["key"])
        for name in ("versions", "limits"):
            key.pop(name, None)
        # As a key holds them: lists for tuples.
        return key == json.loads(json.dumps(identity_of(config_of(record))))
    except (
        *(KeyError, TypeError, AttributeError, ValueError, RecursionError),
        AcademicPretrainingError,
    ):
        return False


@functools.cache
def _current(model: str) -> dict[str, Any]:
    # As a record holds it: lists for tuples.
    return json.loads(json.dumps(without_prose(recipe_to_dict(MODELS[model]))))
