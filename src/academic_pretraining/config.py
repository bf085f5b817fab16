"""One training to measure: hardware, model and method; and how its batch is divided."""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from academic_pretraining.errors import InvalidConfigError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, MethodSpace, Sharding, method_space
from academic_pretraining.models.recipe import ModelRecipe, Precision, Task
from academic_pretraining.numerics import numerics


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How one global batch is divided over GPUs and time.

    Attributes:
        world_size: processes, one a GPU.
        micro_batch_size: examples that one GPU takes through one forward and backward pass.
        gradient_accumulation_steps: micro-batches of one GPU in one optimizer step.
    """

    world_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int

    def __post_init__(self) -> None:
        for name in ("world_size", "micro_batch_size", "gradient_accumulation_steps"):
            count = getattr(self, name)
            if type(count) is not int:
                raise InvalidConfigError(f"{name} is {count!r}, but must be a whole number")
            if count < 1:
                raise InvalidConfigError(
                    f"{name} is {count}, but must be at least 1: give a positive number"
                )
            if count > _MOST:
                raise InvalidConfigError(
                    f"{name} is {count}, but must be at most {_MOST:,}: give a smaller number"
                )

    @property
    def global_batch_size(self) -> int:
        """Examples in one optimizer step."""
        return self.world_size * self.micro_batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A valid combination of hardware, recipe and method.

    Attributes:
        hardware: what it trains on.
        recipe: what is trained, and how.
        method: how the training is made to fit and to be fast.
        batch_tolerance: relative departure from the recipe's global batch that the user allows.

    Raises:
        InvalidConfigError: with every rule that the combination breaks.
    """

    hardware: Hardware
    recipe: ModelRecipe
    method: Method
    batch_tolerance: float = 0.0

    def __post_init__(self) -> None:
        reasons = why_invalid(
            self.hardware, self.recipe, self.method, batch_tolerance=self.batch_tolerance
        )
        if reasons:
            raise InvalidConfigError(*reasons)

    @property
    def precision(self) -> Precision:
        """The recipe's precision; fp32 on a CPU, which is only for trying things out."""
        return Precision.FP32 if self.hardware.gpu.is_cpu else self.recipe.precision

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` is part of the method for this model."""
        return self.method.free_lunch and self.recipe.supports_compile

    @property
    def compile_choices(self) -> tuple[bool, ...]:
        """Whether with `torch.compile`, without or both, in the order in which they are timed."""
        if not self.compiles:
            return (False,)
        return (False, True) if self.method.sharding.breaks_graphs else (True,)

    @property
    def compiles_layers_apart(self) -> bool:
        """Whether layers are compiled for themselves, as hooks within their recomputation ask for.

        No TrainingArguments say so; the model has to be built for it.
        """
        method = self.method
        return (
            self.compiles and method.activation_checkpointing and method.sharding.hooks_into_layers
        )

    @property
    def tf32(self) -> bool:
        """Whether matrix products in fp32 may run as TF32."""
        return self.method.free_lunch and self.hardware.gpu.supports_tf32

    @property
    def numerics(self) -> str:
        """How its arithmetic differs from plain data parallelism, or `reference`."""
        return numerics(self.method.sharding, self.precision, tf32=self.tf32)

    @property
    def attention(self) -> str | None:
        """`attn_implementation` of the model; `None` for a model without attention."""
        if self.recipe.attention_kernel is None:
            return None
        return self.recipe.attention_kernel if self.method.free_lunch else "eager"

    @property
    def global_batch_size(self) -> int:
        """Examples in one optimizer step: the recipe's, or the nearest that the GPUs can share."""
        return _nearest_batch(self.recipe.global_batch_size, self.hardware.world_size)

    @property
    def label(self) -> str:
        """One line for people, such as `pythia-160m on 2 x h200: free-lunch + ZeRO-2`."""
        hardware = self.hardware
        nodes = f"{hardware.num_nodes} nodes x " if hardware.num_nodes > 1 else ""
        return (
            f"{self.recipe.name} on {nodes}{hardware.gpus_per_node} x {hardware.gpu_type}: "
            f"{self.method.label}"
        )

    def plan(self, micro_batch_size: int, gradient_accumulation_steps: int) -> BatchPlan:
        """Build the plan of these two numbers.

        Raises:
            InvalidConfigError: their product departs from the recipe's global batch by more than
                the tolerance.
        """
        plan = BatchPlan(
            world_size=self.hardware.world_size,
            micro_batch_size=micro_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        wanted = self.recipe.global_batch_size
        departure = abs(plan.global_batch_size - wanted)
        if departure > self.batch_tolerance * wanted + _MARGIN:
            possible = [p.micro_batch_size for p in self.plans()]
            raise InvalidConfigError(
                f"{plan.world_size} GPU{'s' * (plan.world_size > 1)} x micro-batch "
                f"{micro_batch_size} x {gradient_accumulation_steps} accumulation steps is a "
                "global batch of "
                f"{plan.global_batch_size}, but {self.recipe.name} trains with {wanted}: choose a "
                f"micro-batch size among {_listed(possible)} and accumulation steps to match, or "
                "allow a difference with --batch-tolerance"
            )
        return plan

    def plans(self) -> tuple[BatchPlan, ...]:
        """List the plans of `global_batch_size`, in ascending order of the micro-batch size."""
        return tuple(_plans(self.global_batch_size, self.hardware.world_size))

    def plan_at(self, micro_batch_size: int) -> BatchPlan:
        """Return the plan of one micro-batch size.

        Raises:
            InvalidConfigError: no accumulation brings this size to the recipe's global batch.
        """
        if micro_batch_size < 1:
            return self.plan(micro_batch_size, 1)
        nearest = max(
            1, round(self.global_batch_size / (self.hardware.world_size * micro_batch_size))
        )
        return self.plan(micro_batch_size, nearest)


def why_invalid(
    hardware: Hardware, recipe: ModelRecipe, method: Method, *, batch_tolerance: float = 0.0
) -> tuple[str, ...]:
    """List the rules that a combination breaks; empty for a valid one.

    The one place for validity: it filters the grid and gives errors their text.
    """
    sharded = method.sharding is not Sharding.NONE
    gpu = hardware.gpu
    reasons = []
    if method.offloading and not sharded:
        reasons.append(
            "offloading needs sharding, which decides what is offloaded: choose a sharding method"
        )
    if sharded and hardware.world_size == 1 and not method.offloading:
        reasons.append(
            f"{method.sharding.label} on 1 GPU divides nothing: use more GPUs or add offloading"
        )
    if method.offloading and gpu.is_cpu:
        reasons.append("offloading on a cpu has nowhere to go: leave it out")
    if method.activation_checkpointing and not recipe.supports_activation_checkpointing:
        reasons.append(f"{recipe.name} does not support activation checkpointing: leave it out")
    if recipe.precision is Precision.BF16 and not gpu.supports_bf16 and not gpu.is_cpu:
        reasons.append(
            f"{recipe.name} trains in bf16, which {gpu.name} lacks: use an Ampere GPU or newer"
        )
    if wrong := why_tolerance_invalid(batch_tolerance):
        reasons += wrong
    else:
        reasons += _why_batch_invalid(
            recipe.global_batch_size, hardware.world_size, batch_tolerance
        )
    return tuple(reasons)


def why_tolerance_invalid(batch_tolerance: float) -> tuple[str, ...]:
    """Say what is wrong with a tolerance; empty for a valid one."""
    if isinstance(batch_tolerance, int | float) and 0 <= batch_tolerance < 1:
        return ()
    return (
        f"batch tolerance is {batch_tolerance}, but must be at least 0 and below 1: 0.01 allows 1%",
    )


def grid(
    hardware: Hardware, recipe: ModelRecipe, space: MethodSpace, *, batch_tolerance: float = 0.0
) -> Iterator[tuple[Method, tuple[str, ...]]]:
    """Yield every method of a space with the reasons against it (none: it is run)."""
    for method in method_space(space):
        yield method, why_invalid(hardware, recipe, method, batch_tolerance=batch_tolerance)


def config_to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Write a configuration, recipe included, as JSON types."""
    return {
        "hardware": asdict(config.hardware),
        "recipe": recipe_to_dict(config.recipe),
        "method": asdict(config.method),
        "batch_tolerance": config.batch_tolerance,
    }


def recipe_to_dict(recipe: ModelRecipe) -> dict[str, Any]:
    """Write a recipe as JSON types."""
    data = {f.name: getattr(recipe, f.name) for f in fields(ModelRecipe)}
    data |= {
        name: copy.deepcopy(dict(data[name])) for name in ("architecture", "lr_scheduler_kwargs")
    }
    return data | {"kernel_packages": list(recipe.kernel_packages)}


def config_from_dict(data: dict[str, Any]) -> TrainingConfig:
    """Read what `config_to_dict` wrote."""
    recipe = dict(data["recipe"])
    method = dict(data["method"])
    return TrainingConfig(
        hardware=Hardware(**data["hardware"]),
        recipe=ModelRecipe(
            **{
                **recipe,
                "task": Task(recipe["task"]),
                "precision": Precision(recipe["precision"]),
                "kernel_packages": tuple(recipe["kernel_packages"]),
            }
        ),
        method=Method(**{**method, "sharding": Sharding(method["sharding"])}),
        batch_tolerance=data["batch_tolerance"],
    )


def _nearest_batch(global_batch_size: int, world_size: int) -> int:
    return max(1, round(global_batch_size / world_size)) * world_size


def _plans(global_batch_size: int, world_size: int) -> Iterator[BatchPlan]:
    each = global_batch_size // world_size
    for micro_batch_size in range(1, each + 1):
        if each % micro_batch_size == 0:
            yield BatchPlan(
                world_size=world_size,
                micro_batch_size=micro_batch_size,
                gradient_accumulation_steps=each // micro_batch_size,
            )


def _why_batch_invalid(global_batch_size: int, world_size: int, tolerance: float) -> list[str]:
    nearest = _nearest_batch(global_batch_size, world_size)
    departure = abs(nearest - global_batch_size)
    if departure <= tolerance * global_batch_size + _MARGIN:
        return []
    if world_size > global_batch_size:
        return [
            f"{world_size} GPUs share a global batch of {global_batch_size}, less than one example "
            f"each: use at most {global_batch_size} GPUs"
        ]
    return [
        f"a global batch of {global_batch_size} does not divide over {world_size} GPUs: the "
        f"nearest that does is {nearest}; allow it with --batch-tolerance "
        f"{_rounded_up(departure / global_batch_size)}, or use a number of GPUs that divides "
        f"{global_batch_size}"
    ]


# More is a mistake, and would overflow.
_MOST = 10**12

# For tolerances such as 0.29, which binary fractions miss by a hair.
_MARGIN = 1e-9


def _rounded_up(fraction: float) -> float:
    return math.ceil(fraction * 1000 - 1e-9) / 1000


def _listed(numbers: list[int], most: int = 12) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return shown + (", ..." if len(numbers) > most else "")
