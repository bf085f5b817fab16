"""The models that can be trained: one row a model, one file a family."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from academic_pretraining.errors import UnknownNameError
from academic_pretraining.models.convnext import CONVNEXT
from academic_pretraining.models.mamba import MAMBA
from academic_pretraining.models.pythia import PYTHIA
from academic_pretraining.models.recipe import ModelRecipe
from academic_pretraining.models.roberta import ROBERTA
from academic_pretraining.models.vit import VIT

MODELS: Mapping[str, ModelRecipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (*ROBERTA, *PYTHIA, *MAMBA, *CONVNEXT, *VIT)}
)


def get_model(name: str) -> ModelRecipe:
    """Look a recipe up.

    Raises:
        UnknownNameError: no row has this name.
    """
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(MODELS)}"
    raise UnknownNameError(f"no model is called {name!r}: {hint}")
