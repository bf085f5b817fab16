"""Small twins: the real recipe over an architecture that a CPU builds in no time."""

import dataclasses

from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import ModelRecipe, Task

_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
# By class of configuration.
_SHRUNKEN = {
    "GPTNeoXConfig": _TRANSFORMER,
    "RobertaConfig": _TRANSFORMER,
    "ViTConfig": _TRANSFORMER,
    "MambaConfig": {"hidden_size": 32, "num_hidden_layers": 2, "time_step_rank": 2},
    "ConvNextConfig": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 2, 1, 1]},
}


_NO_DROPOUT = {
    "RobertaConfig": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "ViTConfig": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "ConvNextConfig": {"drop_path_rate": 0.0},
}


def twin(name: str, *, dropout: bool = True) -> ModelRecipe:
    """Shrink a model; how it is trained stays.

    Without dropout, what it computes depends on its weights and data alone.
    """
    recipe = MODELS[name]
    text = recipe.task is not Task.IMAGE_CLASSIFICATION
    classes = {"vocab_size": 64} if text else {"num_labels": 64, "image_size": 32}
    return dataclasses.replace(
        recipe,
        architecture={
            **recipe.architecture,
            **_SHRUNKEN[recipe.config_class],
            **classes,
            **({} if dropout else _NO_DROPOUT.get(recipe.config_class, {})),
        },
        num_classes=64,
        sequence_length=16 if text else None,
        image_size=None if text else 32,
    )
