"""The shape of a recipe: a model's architecture and how its authors trained it."""

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from academic_pretraining.errors import InvalidConfigError


class Precision(enum.StrEnum):
    """Arithmetic of the forward and backward pass."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class Task(enum.StrEnum):
    """What the model is trained to do; decides the shape of an example."""

    CAUSAL_LM = "causal_lm"
    MASKED_LM = "masked_lm"
    IMAGE_CLASSIFICATION = "image_classification"


# More of anything is a mistake, and would overflow.
_MOST = 10**15


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# What explains a recipe and changes nothing that is measured.
PROSE_FIELDS = ("source", "note", "parameter_count", "parameter_count_source")


def without_prose(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a recipe, written as JSON types, what decides a measurement."""
    return {name: value for name, value in recipe.items() if name not in PROSE_FIELDS}


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """One model as published: architecture, batch, optimizer and schedule.

    Attributes:
        name: what the command line calls it.
        config_class: class of `transformers` that holds the architecture.
        model_class: class of `transformers` that is trained.
        architecture: keyword arguments of `config_class`, complete, so that nothing is downloaded.
        task: kind of training example.
        sequence_length: tokens in one example; `None` for images.
        image_size: pixels along each side of a square RGB image; `None` for text.
        num_classes: vocabulary size for text, number of labels for images.
        parameter_count: published number of trainable parameters, tied weights counted once.
        global_batch_size: examples that contribute to one optimizer step, over all GPUs.
        max_steps: optimizer steps of the whole training.
        precision: the published arithmetic.
        learning_rate: peak of the schedule.
        adam_beta1, adam_beta2, adam_epsilon, weight_decay: of AdamW.
        lr_scheduler_type: a `transformers.SchedulerType` value.
        lr_scheduler_kwargs: its arguments.
        warmup_steps: optimizer steps of linear warm-up.
        max_grad_norm: clipping threshold; 0 means that gradients are not clipped.
        attention_kernel: `attn_implementation` under free-lunch (naive is always `eager`); `None`
            for a model without attention.
        supports_compile: whether `torch.compile` is part of free-lunch for this model.
        supports_activation_checkpointing: whether its layers can be recomputed.
        layer_class: module class that FSDP shards, and ZeRO-3 gathers, as one unit.
        kernel_packages: distributions whose kernels the model takes where they are installed.
        source: where the training recipe was published.
        parameter_count_source: where the parameter count was published.
        note: what a user should know, in one sentence; empty for most.
    """

    name: str
    config_class: str
    model_class: str
    architecture: Mapping[str, Any]
    task: Task
    sequence_length: int | None = None
    image_size: int | None = None
    num_classes: int
    parameter_count: int
    global_batch_size: int
    max_steps: int
    precision: Precision
    learning_rate: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float = 1e-8
    weight_decay: float
    lr_scheduler_type: str
    lr_scheduler_kwargs: Mapping[str, Any] = field(default_factory=dict)
    warmup_steps: int
    max_grad_norm: float
    attention_kernel: str | None = None
    supports_compile: bool = True
    supports_activation_checkpointing: bool = True
    layer_class: str
    kernel_packages: tuple[str, ...] = ()
    source: str
    parameter_count_source: str
    note: str = ""

    def __post_init__(self) -> None:
        if reasons := tuple(self._faults()):
            raise InvalidConfigError(*reasons)
        for name in ("architecture", "lr_scheduler_kwargs"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def _faults(self) -> Iterator[str]:
        """Say which values are none that a training can have."""
        for least, names in (
            (1, ("num_classes", "parameter_count", "global_batch_size", "max_steps")),
            (0, ("warmup_steps",)),
        ):
            for name in names:
                count = getattr(self, name)
                if type(count) is not int or not least <= count <= _MOST:
                    yield (
                        f"{name} of {self.name} is {count!r}, but must be a whole number from "
                        f"{least} to {_MOST:,}"
                    )
        for name in ("sequence_length", "image_size"):
            size = getattr(self, name)
            if size is not None and (type(size) is not int or not 1 <= size <= _MOST):
                yield f"{name} of {self.name} is {size!r}, but must be from 1 to {_MOST:,}"
        for name in ("learning_rate", "adam_epsilon", "weight_decay", "max_grad_norm"):
            number = getattr(self, name)
            if not _is_number(number) or not 0 <= number < math.inf:
                yield f"{name} of {self.name} is {number!r}, but must be at least 0"
        for name in ("adam_beta1", "adam_beta2"):
            number = getattr(self, name)
            if not _is_number(number) or not 0 <= number < 1:
                yield f"{name} of {self.name} is {number!r}, but must be at least 0 and below 1"
        for name, kind in (
            ("name", str),
            ("task", Task),
            ("precision", Precision),
            ("architecture", Mapping),
            ("lr_scheduler_kwargs", Mapping),
        ):
            if not isinstance(getattr(self, name), kind):
                yield f"{name} is {getattr(self, name)!r}, but must be a {kind.__name__}"

    @property
    def example_bytes(self) -> int:
        """Bytes of one example on the device: int64 tokens and labels, or float32 pixels."""
        if self.image_size is not None:
            return 3 * self.image_size**2 * 4 + 8
        return 2 * 8 * (self.sequence_length or 0)

    @property
    def unit(self) -> str:
        """What throughput counts: `tokens` or `images`."""
        return "tokens" if self.sequence_length is not None else "images"

    @property
    def units_per_example(self) -> int:
        """How many `unit`s one example holds."""
        return self.sequence_length or 1
