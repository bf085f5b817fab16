"""The methods that trade nothing, time or memory for speed, and the grids over them."""

import enum
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from academic_pretraining.errors import InvalidConfigError


class Backend(enum.StrEnum):
    """The library that shards training state over GPUs."""

    DEEPSPEED = "deepspeed"
    FSDP = "fsdp"


class Sharding(enum.StrEnum):
    """How training state is divided over GPUs."""

    NONE = "none"
    ZERO_1 = "zero_1"
    ZERO_2 = "zero_2"
    ZERO_3 = "zero_3"
    FSDP_SHARD_GRAD_OP = "fsdp_shard_grad_op"
    FSDP_FULL_SHARD = "fsdp_full_shard"

    @property
    def backend(self) -> Backend | None:
        """Library that implements it; `None` without sharding."""
        return _SHARDING[self][0]

    @property
    def stage(self) -> int:
        """ZeRO's stage: 1 optimizer state, 2 and gradients, 3 and parameters; 0 without."""
        return _SHARDING[self][1]

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return _SHARDING[self][2]

    @property
    def breaks_graphs(self) -> bool:
        """Whether compiled code is interrupted so often that it may be slower than eager code.

        ZeRO-3 gathers parameters by Python hooks, which Dynamo traces and compiles again and again,
        up to its limit. With hooks of every module pythia-160m took 12.6 s a step so and 10.0 s
        without; with hooks of whole layers, 8.5 s and 8.9 ± 2.5 s (artifacts/README.md).
        """
        return self is Sharding.ZERO_3

    @property
    def hooks_into_layers(self) -> bool:
        """Whether each layer's parameters are seen to when it is called, which breaks the graph."""
        return self.backend is Backend.FSDP or self is Sharding.ZERO_3


_SHARDING = {
    Sharding.NONE: (None, 0, "-"),
    Sharding.ZERO_1: (Backend.DEEPSPEED, 1, "ZeRO-1"),
    Sharding.ZERO_2: (Backend.DEEPSPEED, 2, "ZeRO-2"),
    Sharding.ZERO_3: (Backend.DEEPSPEED, 3, "ZeRO-3"),
    Sharding.FSDP_SHARD_GRAD_OP: (Backend.FSDP, 2, "FSDP2 (grad)"),
    Sharding.FSDP_FULL_SHARD: (Backend.FSDP, 3, "FSDP2 (full)"),
}


class MethodSpace(enum.StrEnum):
    """Which part of the grid to walk."""

    NAIVE = "naive"
    FREE_LUNCH = "free-lunch"
    ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One point of the grid.

    Attributes:
        free_lunch: compilation, the model's own kernels and TF32 together.
        activation_checkpointing: recompute activations in the backward pass.
        sharding: how training state is divided.
        offloading: keep what is sharded in host memory.
    """

    free_lunch: bool = False
    activation_checkpointing: bool = False
    sharding: Sharding = Sharding.NONE
    offloading: bool = False

    def __post_init__(self) -> None:
        for name in ("free_lunch", "activation_checkpointing", "offloading"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidConfigError(
                    f"{name} is {getattr(self, name)!r}, but must be true or false"
                )
        if not isinstance(self.sharding, Sharding):
            raise InvalidConfigError(
                f"sharding is {self.sharding!r}, but must be one of {', '.join(Sharding)}"
            )

    @property
    def label(self) -> str:
        """Name in tables and figures, such as `free-lunch + checkpointing + ZeRO-2`."""
        parts = ["free-lunch"] if self.free_lunch else []
        parts += ["checkpointing"] if self.activation_checkpointing else []
        parts += [self.sharding.label] if self.sharding is not Sharding.NONE else []
        parts += ["offloading"] if self.offloading else []
        return " + ".join(parts) or "naive"


def method_space(space: MethodSpace) -> Iterator[Method]:
    """Yield every method of a grid, valid or not, cheapest first.

    The grid of arXiv 2410.23261: naive alone, and free-lunch with every combination of the
    memory-saving methods.
    """
    if space in (MethodSpace.NAIVE, MethodSpace.ALL):
        yield Method()
    if space is MethodSpace.FREE_LUNCH:
        yield Method(free_lunch=True)
    if space is MethodSpace.ALL:
        for sharding, offloading, checkpointing in itertools.product(
            Sharding, (False, True), (False, True)
        ):
            yield Method(
                free_lunch=True,
                activation_checkpointing=checkpointing,
                sharding=sharding,
                offloading=offloading,
            )
