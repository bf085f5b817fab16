import dataclasses

import pytest
import transformers
from torch import nn
from torch.optim import SGD
from transformers import get_scheduler

from academic_pretraining.benchmarking.build import parameter_count
from academic_pretraining.errors import UnknownNameError
from academic_pretraining.models import MODELS, get_model
from academic_pretraining.models.recipe import ModelRecipe, Precision, Task

PYTHIA_SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
# Batch, steps, learning rate, betas, epsilon, weight decay, warm-up, clipping, precision: the
# settings of arXiv 2410.23261.
TRAINING = {
    "roberta": (8192, 500_000, 4e-4, (0.9, 0.98), 1e-8, 0.01, 30_000, 0.0, "fp16"),
    "mamba": (128, 572_204, 8e-4, (0.9, 0.95), 1e-8, 0.1, 57_220, 1.0, "bf16"),
    "convnext-large-1k": (4096, 93_600, 4e-3, (0.9, 0.999), 1e-8, 0.05, 6_240, 0.0, "fp32"),
    "convnext-large-22k": (4096, 311_940, 4e-3, (0.9, 0.999), 1e-8, 0.05, 17_330, 0.0, "fp32"),
    "convnext-xlarge-22k": (4096, 311_940, 4e-3, (0.9, 0.999), 1e-8, 0.05, 17_330, 0.0, "fp32"),
    "vit": (4096, 311_948, 1e-3, (0.9, 0.999), 1e-8, 0.03, 10_000, 1.0, "fp32"),
}
PYTHIA_RATES = (1e-3, 1e-3, 1e-3, 6e-4, 3e-4, 3e-4, 2e-4, 1.6e-4, 1.2e-4, 1.2e-4)
for _size, _rate in zip(PYTHIA_SIZES, PYTHIA_RATES, strict=True):
    _precision = "bf16" if _size == "1b" else "fp16"
    TRAINING[f"pythia-{_size}"] = (
        *(1024, 143_000, _rate, (0.9, 0.95), 1e-8, 0.01, 1430, 1.0),
        _precision,
    )
# As published by the authors, not as built here: github.com/EleutherAI/pythia, "Total params";
# the others round to the published figures (355M, 2.8B, 198M) or follow from them by the head.
PARAMETERS = {
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "roberta": 355_412_057,
    "mamba": 2_768_345_600,
    "convnext-large-1k": 197_767_336,
    # 20,841 more classes, each with 1,536 weights and a bias.
    "convnext-large-22k": 197_767_336 + 20_841 * 1537,
    "convnext-xlarge-22k": 392_900_177,
    "vit": 325_688_657,
}

every_recipe = pytest.mark.parametrize("recipe", MODELS.values(), ids=lambda recipe: recipe.name)


def config_of(recipe: ModelRecipe) -> transformers.PretrainedConfig:
    return getattr(transformers, recipe.config_class)(**recipe.architecture)


def test_the_table_holds_the_promised_models():
    assert set(MODELS) == set(TRAINING) == set(PARAMETERS)
    assert all(recipe.name == name for name, recipe in MODELS.items())


@every_recipe
def test_the_architecture_has_the_published_number_of_parameters(recipe):
    assert recipe.parameter_count == PARAMETERS[recipe.name]
    assert parameter_count(recipe) == recipe.parameter_count
    assert recipe.parameter_count_source


@every_recipe
def test_the_training_is_the_published_one(recipe):
    assert TRAINING[recipe.name] == (
        recipe.global_batch_size,
        recipe.max_steps,
        recipe.learning_rate,
        (recipe.adam_beta1, recipe.adam_beta2),
        recipe.adam_epsilon,
        recipe.weight_decay,
        recipe.warmup_steps,
        recipe.max_grad_norm,
        recipe.precision,
    )
    assert recipe.source


@every_recipe
def test_the_classes_belong_together(recipe):
    model_class = getattr(transformers, recipe.model_class)
    assert model_class.config_class is getattr(transformers, recipe.config_class)


@every_recipe
def test_the_architecture_names_only_what_the_configuration_knows(recipe):
    known = {field.name for field in dataclasses.fields(config_of(recipe))} | {"num_labels"}
    assert set(recipe.architecture) <= known


@every_recipe
def test_an_example_fits_the_architecture(recipe):
    config = config_of(recipe)
    if recipe.task is Task.IMAGE_CLASSIFICATION:
        assert (recipe.sequence_length, recipe.unit) == (None, "images")
        assert config.image_size == recipe.image_size == 224
        assert config.num_labels == recipe.num_classes
    else:
        assert (recipe.image_size, recipe.unit) == (None, "tokens")
        assert config.vocab_size == recipe.num_classes
        # RoBERTa counts its positions from the padding's number on.
        reserved = (config.pad_token_id or 0) + 1 if recipe.name == "roberta" else 0
        positions = getattr(config, "max_position_embeddings", recipe.sequence_length)
        assert recipe.sequence_length + reserved <= positions


@every_recipe
def test_kernels_and_compilation_are_the_papers(recipe):
    family = recipe.name.split("-")[0]
    kernels = {"pythia": "sdpa", "vit": "sdpa", "roberta": "eager"}
    assert recipe.attention_kernel == kernels.get(family)
    assert recipe.supports_compile == (family != "mamba")
    assert recipe.supports_activation_checkpointing


@every_recipe
def test_the_schedule_ends_where_it_should(recipe):
    optimizer = SGD([nn.Parameter()], lr=recipe.learning_rate)
    schedule = get_scheduler(
        recipe.lr_scheduler_type,
        optimizer,
        num_warmup_steps=2,
        num_training_steps=10,
        scheduler_specific_kwargs=dict(recipe.lr_scheduler_kwargs),
    )
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    last = {"pythia": 0.1 * recipe.learning_rate, "mamba": 1e-5}
    assert max(rates) == pytest.approx(recipe.learning_rate)
    assert rates[-1] == pytest.approx(last.get(recipe.name.split("-")[0], 0.0), abs=1e-12)


@pytest.mark.parametrize("size", PYTHIA_SIZES)
def test_pythia_turns_a_quarter_of_each_head(size):
    config = config_of(MODELS[f"pythia-{size}"])
    assert config.rope_parameters["partial_rotary_factor"] == 0.25
    assert config.use_parallel_residual
    assert not config.tie_word_embeddings


def test_pythia_says_what_departs_from_the_paper():
    notes = {size: MODELS[f"pythia-{size}"].note for size in PYTHIA_SIZES}
    assert all(note.startswith("2,049 tokens an example") for note in notes.values())
    assert "padded to 50432" in notes["6.9b"]
    assert "padded to 50688" in notes["12b"]
    assert MODELS["pythia-2.8b"].num_classes == 50304


def test_get_model_returns_the_row():
    assert get_model("pythia-160m") is MODELS["pythia-160m"]
    assert get_model("pythia-1b").precision is Precision.BF16


def test_a_misspelt_model_gets_the_closest():
    with pytest.raises(UnknownNameError) as caught:
        get_model("pythia-160")
    assert str(caught.value) == "no model is called 'pythia-160': did you mean pythia-160m?"


def test_a_model_like_no_other_gets_the_list():
    with pytest.raises(UnknownNameError) as caught:
        get_model("?")
    assert str(caught.value) == f"no model is called '?': choose one of {', '.join(MODELS)}"
