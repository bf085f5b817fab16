"""A recipe as a model and as synthetic data; nothing is downloaded."""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.mamba.modeling_mamba import MambaMixer

from academic_pretraining.benchmarking.compiler import (
    compile_recomputed_layers,
    keep_recomputation,
    take_sizes_for_constants,
)
from academic_pretraining.models.recipe import ModelRecipe, Task

_AUTO_CLASSES = {
    Task.CAUSAL_LM: transformers.AutoModelForCausalLM,
    Task.MASKED_LM: transformers.AutoModelForMaskedLM,
    Task.IMAGE_CLASSIFICATION: transformers.AutoModelForImageClassification,
}
_POOL = 64


def build_model_for(
    arguments: TrainingArguments, recipe: ModelRecipe, *, attention: str | None, free_lunch: bool
) -> PreTrainedModel:
    """Build what a Trainer of these arguments trains, where it will train it.

    Weights are drawn on the GPU, which takes a fraction of the CPU's time. A model that FSDP or
    DeepSpeed divide or halve goes back to the CPU then, and is drawn there where it might not fit;
    under ZeRO-3 it comes up in shards. CPU, GPU and ZeRO-3 draw other numbers from the same seed,
    alike on all ranks.
    """
    how: Any = {"attention": attention, "free_lunch": free_lunch, "seed": arguments.seed}
    model = _built_in_place(arguments, recipe, how)
    if arguments.torch_compile:
        keep_recomputation()
        # Texts of one's own may differ in length, and would be compiled for each.
        dynamic = None if recipe.image_size is None else False
        if dynamic is False:
            take_sizes_for_constants()
        compile_recomputed_layers(model, recipe.layer_class, arguments, dynamic=dynamic)
    return model


def _built_in_place(
    arguments: TrainingArguments, recipe: ModelRecipe, how: dict[str, Any]
) -> PreTrainedModel:
    divided = arguments.fsdp or arguments.deepspeed
    if divided and (is_deepspeed_zero3_enabled() or not _fits_whole(recipe, arguments.device)):
        return build_model(recipe, **how)
    with arguments.device:
        model = build_model(recipe, **how)
    if divided and arguments.device.type == "cuda":
        model.cpu()
        # Drawing is not training: its memory is given back and does not count in the peak.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return model


def _fits_whole(recipe: ModelRecipe, device: torch.device) -> bool:
    """Whether fp32 weights take a quarter of a GPU at most; alike on all ranks."""
    if device.type != "cuda":
        return False
    return 16 * recipe.parameter_count <= torch.cuda.get_device_properties(device).total_memory


def build_model(
    recipe: ModelRecipe, *, attention: str | None, free_lunch: bool = True, seed: int = 42
) -> PreTrainedModel:
    """Build a recipe's model in fp32, with the same weights on every rank.

    `attention` is the `attn_implementation`; a model without attention takes no notice of it.

    Under ZeRO-3 it comes up in shards, if its TrainingArguments exist already.
    """
    config = getattr(transformers, recipe.config_class)(**recipe.architecture)
    if hasattr(config, "use_mambapy"):
        config.use_mambapy = free_lunch and _installed("mambapy")
    set_seed(seed)
    chosen = {}
    if attention is not None and recipe.attention_kernel is not None:
        chosen["attn_implementation"] = attention
    with _whole_mixers():
        model = _AUTO_CLASSES[recipe.task].from_config(config, **chosen)
    _make_stages_checkpointable(model)
    _name_input_embeddings(model)
    _hold_the_bias_once(model)
    _have_its_loss_averaged(model)
    _keep_names_in_checkpoints(model)
    return model


def parameter_count(recipe: ModelRecipe) -> int:
    """Count trainable parameters on the meta device, tied weights once."""
    with torch.device("meta"):
        model = build_model(recipe, attention="eager")
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def custom_kernels(recipe: ModelRecipe, *, free_lunch: bool) -> str:
    """Say which kernels of the model's own are in force."""
    if recipe.config_class == "MambaConfig":
        if _installed("mamba_ssm"):
            # transformers takes them wherever they are installed, naive or not.
            return "mamba-ssm" if free_lunch else "mamba-ssm (cannot be switched off)"
        if free_lunch and _installed("mambapy"):
            return "mambapy scan (mamba-ssm is not installed)"
        return "sequential scan (mamba-ssm is not installed)"
    if recipe.attention_kernel is None:
        return "none"
    return recipe.attention_kernel if free_lunch else "eager"


class SyntheticDataset(Dataset[dict[str, torch.Tensor]]):
    """Random training examples, few and drawn on first use; the rest repeat them.

    Items, before they are collated to micro-batches:
        causal and masked language models: `input_ids` and `labels`, int64 [sequence_length];
        images: `pixel_values`, float32 [3, image_size, image_size], and `labels`, int64 [].
    """

    def __init__(self, recipe: ModelRecipe, num_examples: int, seed: int = 0) -> None:
        # Not the recipe, which holds what cannot be pickled to a spawned worker of a data loader.
        self._is_image = recipe.task is Task.IMAGE_CLASSIFICATION
        self._size = (recipe.image_size if self._is_image else recipe.sequence_length) or 0
        self._num_classes = recipe.num_classes
        self._num_examples = num_examples
        self._seed = seed

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._pool[index % len(self._pool)]

    @cached_property
    def _pool(self) -> list[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(self._seed)
        count = min(_POOL, self._num_examples)
        return [self._draw(generator) for _ in range(count)]

    def _draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if self._is_image:
            return {
                "pixel_values": torch.randn(3, self._size, self._size, generator=generator),
                "labels": torch.randint(self._num_classes, (), generator=generator),
            }
        # 3 and more, so that no token is read as padding.
        tokens = torch.randint(3, self._num_classes, (self._size,), generator=generator)
        return {"input_ids": tokens, "labels": tokens.clone()}


def synthetic_dataset(recipe: ModelRecipe, num_examples: int, seed: int = 0) -> SyntheticDataset:
    """Make `num_examples` random examples of a recipe's shape."""
    return SyntheticDataset(recipe, num_examples, seed)


def _installed(package: str) -> bool:
    """Whether it can be imported: a kernel built for another torch is there but does not load."""
    try:
        importlib.import_module(package)
    except Exception:  # As transformers, which then goes without, whatever it was.
        return False
    return True


@contextlib.contextmanager
def _whole_mixers() -> Iterator[None]:
    """Let a Mamba mixer be initialised under ZeRO-3.

    transformers 5.17 gathers a module's own parameters before it initialises them, but a mixer
    also writes to its child's (`dt_proj.bias`), which then has no elements. It asks
    `parameters(recurse=False)`; tests/benchmarking/test_build.py fails when this is not needed.
    """

    def parameters(self: nn.Module, recurse: bool = True) -> Iterator[nn.Parameter]:
        return nn.Module.parameters(self, recurse=True)

    MambaMixer.parameters = parameters
    try:
        yield
    finally:
        del MambaMixer.parameters


def _make_stages_checkpointable(model: PreTrainedModel) -> None:
    """Let ConvNeXt recompute its stages; transformers 5.17 has no checkpointing for it."""
    if model.supports_gradient_checkpointing:
        return
    for module in model.modules():
        if type(module).__name__ == "ConvNextStage":
            module.__class__ = _checkpointable(type(module))
            model.supports_gradient_checkpointing = True


@functools.cache
def _checkpointable(kind: type[nn.Module]) -> type[nn.Module]:
    """Let a class be recomputed.

    The name stays, because FSDP and ZeRO-3 find their units by it; and all modules get one class,
    because accelerate shards those of the first class that it finds by that name.
    """
    bases: Any = (GradientCheckpointingLayer, kind)
    return type(kind.__name__, bases, {})


def _name_input_embeddings(model: PreTrainedModel) -> None:
    """Let accelerate find ConvNeXt's first layer, which it asks for under FSDP2.

    transformers 5.17 looks for `embed_tokens` in it and raises. The name is a private attribute;
    tests/benchmarking/test_build.py fails when it is not needed any more.
    """
    if model.config.model_type == "convnext":
        inner: Any = model.base_model
        inner._input_embed_layer = "patch_embeddings"


def _hold_the_bias_once(model: PreTrainedModel) -> None:
    """Take RoBERTa's second name for the bias of its output layer away; nothing computes with it.

    FSDP2 shards the output layer apart from the head around it, and torch 2.13 refuses a parameter
    that stands in both. tests/contract fails without this; the list of tied weights is private.
    """
    if model.config.model_type == "roberta":
        del model.lm_head.bias  # pyright: ignore[reportAttributeAccessIssue]
        tied = dict(model._tied_weights_keys or {})
        del tied["lm_head.decoder.bias"]
        model._tied_weights_keys = tied
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=False)


def _have_its_loss_averaged(model: Any) -> None:
    """Let the Trainer divide RoBERTa's loss by the number of micro-batches.

    transformers 5.17 leaves that to any model that takes keyword arguments, and multiplies by the
    number of GPUs; RoBERTa takes them and averages over its own micro-batch alone, so that loss
    and gradients came out larger by both. tests/benchmarking/test_build.py fails without this, and
    when it is not needed any more.
    """
    if model.config.model_type == "roberta":
        model.accepts_loss_kwargs = False


def _keep_names_in_checkpoints(model: Any) -> None:
    """Have weights saved under the names that they are loaded by.

    `save_pretrained` of transformers 5.17 gives them the hub's older names, as `embed_out` for
    Pythia's `lm_head`, unless told `save_original_format=False`, which the Trainer has no option
    for; and its resumption leaves what it does not find as it was drawn. `from_pretrained` reads
    both. The list of renamings is private; tests/benchmarking/test_build.py fails without this.
    """
    model._weight_conversions = []
