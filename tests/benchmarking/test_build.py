import dataclasses
import json
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from one_rank import found_on_one_rank, run_on_one_rank
from safetensors.torch import load_file
from transformers import default_data_collator
from transformers.modeling_layers import GradientCheckpointingLayer

from academic_pretraining.benchmarking import build
from academic_pretraining.benchmarking.build import (
    build_model,
    build_model_for,
    custom_kernels,
    synthetic_dataset,
)
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import ModelRecipe, Task

_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SHRUNKEN = {
    "pythia-14m": _TRANSFORMER,
    "roberta": _TRANSFORMER,
    "vit": _TRANSFORMER,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "time_step_rank": 2},
    "convnext-large-1k": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 2, 1, 1]},
}

every_recipe = pytest.mark.parametrize("recipe", MODELS.values(), ids=lambda recipe: recipe.name)


def tiny(name: str) -> ModelRecipe:
    recipe = MODELS[name]
    text = recipe.task is not Task.IMAGE_CLASSIFICATION
    classes = {"vocab_size": 64} if text else {"num_labels": 64, "image_size": 32}
    return dataclasses.replace(
        recipe,
        architecture={**recipe.architecture, **SHRUNKEN[name], **classes},
        num_classes=64,
        sequence_length=16 if text else None,
        image_size=None if text else 32,
    )


every_family = pytest.mark.parametrize("recipe", [tiny(name) for name in SHRUNKEN], ids=SHRUNKEN)


def loss_of(model: torch.nn.Module, recipe: ModelRecipe, seed: int = 0) -> torch.Tensor:
    dataset = synthetic_dataset(recipe, 2, seed)
    # Dropout must not tell two runs apart.
    torch.manual_seed(0)
    return model(**default_data_collator([dataset[0], dataset[1]])).loss


@every_family
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_a_small_model_of_each_family_learns(recipe, checkpointing):
    model = build_model(recipe, attention=recipe.attention_kernel)
    assert type(model).__name__ == recipe.model_class
    assert {type(module).__name__ for module in model.modules()} >= {recipe.layer_class}
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    loss = loss_of(model, recipe)
    loss.backward()
    assert loss.isfinite()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )


@every_family
def test_checkpointing_recomputes_every_layer_and_changes_no_gradient(recipe):
    gradients = []
    for checkpointing in (False, True):
        model = build_model(recipe, attention="eager").train()
        layers = [m for m in model.modules() if type(m).__name__ == recipe.layer_class]
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert all(isinstance(layer, GradientCheckpointingLayer) for layer in layers)
            assert all(layer.gradient_checkpointing for layer in layers)
        calls = []
        for layer in layers:
            # Before, not after: recomputation stops as soon as it has what it needs.
            layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss_of(model, recipe).backward()
        assert len(calls) == len(layers) * (2 if checkpointing else 1)
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@every_family
def test_weights_are_fp32_and_follow_the_seed_alone(recipe):
    first = build_model(recipe, attention="eager", seed=1).state_dict()
    torch.rand(7)
    again = build_model(recipe, attention="eager", seed=1).state_dict()
    other = build_model(recipe, attention="eager", seed=2).state_dict()
    floats = [name for name, tensor in first.items() if tensor.is_floating_point()]
    assert {first[name].dtype for name in floats} == {torch.float32}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["pythia-14m", "vit", "roberta"])
def test_the_attention_asked_for_is_the_one_in_force(name, attention):
    model = build_model(tiny(name), attention=attention)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("name", ["mamba", "convnext-large-1k"])
@pytest.mark.parametrize("attention", [None, "eager", "sdpa"])
def test_a_model_without_attention_takes_no_notice_of_it(name, attention):
    recipe = tiny(name)
    assert loss_of(build_model(recipe, attention=attention), recipe).isfinite()


@pytest.mark.parametrize(
    ("name", "free_lunch", "naive"),
    [
        ("pythia-160m", "sdpa", "eager"),
        ("vit", "sdpa", "eager"),
        ("roberta", "eager", "eager"),
        ("convnext-large-1k", "none", "none"),
    ],
)
def test_custom_kernels_are_named(name, free_lunch, naive):
    assert custom_kernels(MODELS[name], free_lunch=True) == free_lunch
    assert custom_kernels(MODELS[name], free_lunch=False) == naive


@pytest.mark.parametrize(
    ("installed", "free_lunch", "expected"),
    [
        ((), True, "sequential scan (mamba-ssm is not installed)"),
        ((), False, "sequential scan (mamba-ssm is not installed)"),
        (("mambapy",), True, "mambapy scan (mamba-ssm is not installed)"),
        (("mambapy",), False, "sequential scan (mamba-ssm is not installed)"),
        (("mamba_ssm", "mambapy"), True, "mamba-ssm"),
        (("mamba_ssm",), False, "mamba-ssm (cannot be switched off)"),
    ],
)
def test_mamba_says_which_scan_it_runs(monkeypatch, installed, free_lunch, expected):
    monkeypatch.setattr(build, "_installed", lambda package: package in installed)
    assert custom_kernels(MODELS["mamba"], free_lunch=free_lunch) == expected
    model = build_model(tiny("mamba"), attention=None, free_lunch=free_lunch)
    assert model.config.use_mambapy == (free_lunch and "mambapy" in installed)


@every_recipe
def test_examples_have_the_recipes_shape(recipe):
    example = synthetic_dataset(recipe, 1)[0]
    if recipe.task is Task.IMAGE_CLASSIFICATION:
        assert set(example) == {"pixel_values", "labels"}
        assert example["pixel_values"].shape == (3, recipe.image_size, recipe.image_size)
        assert example["pixel_values"].dtype == torch.float32
        assert example["labels"].shape == ()
    else:
        assert set(example) == {"input_ids", "labels"}
        assert example["input_ids"].shape == (recipe.sequence_length,)
        assert example["input_ids"].dtype == torch.int64
        assert torch.equal(example["input_ids"], example["labels"])
        assert example["input_ids"].data_ptr() != example["labels"].data_ptr()
    assert example["labels"].dtype == torch.int64
    assert 0 <= int(example["labels"].min()) <= int(example["labels"].max()) < recipe.num_classes


@every_recipe
def test_example_bytes_are_those_of_the_collated_example(recipe):
    batch = default_data_collator([synthetic_dataset(recipe, 1)[0]])
    assert recipe.example_bytes == sum(tensor.nbytes for tensor in batch.values())


def test_no_token_is_padding():
    tokens = synthetic_dataset(tiny("roberta"), 64)
    pad = tiny("roberta").architecture["pad_token_id"]
    assert all(bool((tokens[i]["input_ids"] != pad).all()) for i in range(64))


@every_family
def test_data_follow_the_seed_alone(recipe):
    first, again = synthetic_dataset(recipe, 3, 5), synthetic_dataset(recipe, 3, 5)
    other = synthetic_dataset(recipe, 3, 6)
    key = "pixel_values" if recipe.sequence_length is None else "input_ids"
    torch.rand(7)
    assert all(torch.equal(first[i][key], again[i][key]) for i in (2, 0, 1))
    assert not torch.equal(first[0][key], other[0][key])
    assert not torch.equal(first[0][key], first[1][key])


def test_a_long_dataset_holds_few_examples_and_draws_them_late():
    dataset = synthetic_dataset(tiny("pythia-14m"), 1_000_000)
    assert len(dataset) == 1_000_000
    assert len(pickle.dumps(dataset)) < 1000
    assert dataset[999_999] is dataset[999_999 % 64]
    assert dataset[0] is dataset[64]


@every_family
def test_data_reach_a_spawned_worker(recipe):
    dataset = synthetic_dataset(recipe, 8)
    sent = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(sent[5][key], value) for key, value in dataset[5].items())


def mamba_in_shards(folder, how: str) -> tuple[str, ...]:
    return "mamba_in_shards.py", json.dumps(dict(tiny("mamba").architecture)), str(folder), how


@pytest.mark.slow
def test_mamba_is_initialised_under_zero_3(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    held, steps = found_on_one_rank(*mamba_in_shards(tmp_path, "helped"))
    # Nothing is held between two uses; gathered, the steps are between their bounds, and differ.
    assert held == 0
    for layer in steps:
        assert len(set(layer)) > 32
        assert 0.001 * 0.99 <= min(layer) < 0.01 < max(layer) <= 0.1 * 1.01
    # `allow_sharding_on_cpu` says why: nothing had to be built first.
    assert not (tmp_path / "extensions").exists()


@pytest.mark.slow
@pytest.mark.thorough
def test_without_help_transformers_cannot_initialise_mamba_under_zero_3(tmp_path):
    # When this fails, transformers can: take `_whole_mixers` out of build.py.
    built = run_on_one_rank(*mamba_in_shards(tmp_path, "unhelped"))
    assert built.returncode == 1
    assert "RuntimeError: The size of tensor a (0) must match" in built.stderr


def test_convnext_has_input_embeddings_only_with_help(monkeypatch):
    recipe = tiny("convnext-large-1k")
    model = build_model(recipe, attention=None)
    inner: Any = model.base_model
    assert model.get_input_embeddings() is inner.embeddings.patch_embeddings
    monkeypatch.setattr(build, "_name_input_embeddings", lambda model: None)
    with pytest.raises(NotImplementedError):
        build_model(recipe, attention=None).get_input_embeddings()


def test_all_stages_of_convnext_are_of_one_class():
    # accelerate shards those of the first class that it finds by the name.
    model = build_model(tiny("convnext-large-1k"), attention=None)
    stages = [m for m in model.modules() if type(m).__name__ == "ConvNextStage"]
    assert len(stages) == 4
    assert len({type(stage) for stage in stages}) == 1


def test_a_saved_roberta_is_read_by_transformers(tmp_path):
    model = build_model(tiny("roberta"), attention="eager").eval()
    bias = model.lm_head.decoder.bias  # pyright: ignore
    torch.nn.init.normal_(bias)
    assert [name for name, _ in model.named_parameters(remove_duplicate=False)].count(
        "lm_head.bias"
    ) == 0
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(3, 64, (2, 8))
    # It comes back with other attention kernels.
    torch.testing.assert_close(model(tokens).logits, again(tokens).logits)
    assert torch.equal(again.lm_head.decoder.bias, bias)


@pytest.mark.parametrize(("fsdp", "deepspeed"), [(None, None), (True, None), (None, {"a": 1})])
def test_only_a_whole_model_is_drawn_on_the_device(fsdp, deepspeed):
    recipe = tiny("pythia-14m")
    device = torch.device("meta")
    arguments: Any = SimpleNamespace(
        fsdp=fsdp, deepspeed=deepspeed, device=device, seed=3, torch_compile=False
    )
    model = build_model_for(arguments, recipe, attention="eager", free_lunch=False)
    assert {parameter.is_meta for parameter in model.parameters()} == {not fsdp and not deepspeed}


@every_family
def test_the_loss_heeds_what_the_trainer_leaves_to_it(recipe):
    model = build_model(recipe, attention=recipe.attention_kernel).eval()
    dataset = synthetic_dataset(recipe, 2)
    batch = default_data_collator([dataset[0], dataset[1]])
    items = batch["labels"].numel() if recipe.image_size else batch["labels"][:, 1:].numel()
    # As the Trainer has it for two micro-batches, where it does not divide by two itself.
    told = model(**batch, num_items_in_batch=2 * items).loss.item()
    divides = getattr(model, "accepts_loss_kwargs", True)
    assert told == pytest.approx(model(**batch).loss.item() / (2 if divides else 1), rel=1e-6)


# What `_weight_conversions` is for: transformers renames the weights of these alone.
RENAMED = ("pythia-14m", "vit")


@every_family
def test_a_checkpoint_holds_the_models_own_names(recipe, tmp_path, monkeypatch):
    model = build_model(recipe, attention="eager")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    fresh = build_model(recipe, attention="eager")
    missing, unexpected = fresh.load_state_dict(saved, strict=False)
    assert unexpected == []
    # What is tied to another is saved once.
    found = {id(fresh.get_parameter(name)) for name in set(fresh.state_dict()) - set(missing)}
    assert {id(fresh.get_parameter(name)) for name in missing} <= found
    again = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    monkeypatch.setattr(build, "_keep_names_in_checkpoints", lambda model: None)
    build_model(recipe, attention="eager").save_pretrained(tmp_path)
    # When this fails, transformers renames others, or none: look at `_keep_names_in_checkpoints`.
    renamed = set(load_file(tmp_path / "model.safetensors")) != set(saved)
    family = next(name for name in SHRUNKEN if MODELS[name].config_class == recipe.config_class)
    assert renamed == (family in RENAMED)
