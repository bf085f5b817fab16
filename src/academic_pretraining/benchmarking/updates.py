"""How often an optimizer has really updated the weights."""

from collections.abc import Callable
from typing import Any

import torch

Updates = torch.Tensor | float | None


def updates(optimizer: Any) -> Updates:
    """Copy an optimizer's own count of its updates, where it lies: nobody waits for the GPU.

    Of one under a gradient scaler, for in an fp16 overflow that calls a fused optimizer all the
    same, which finds out on the GPU that there is nothing to do, and accelerate's
    `step_was_skipped` stays false.

    Args:
        optimizer: as a callback gets it.

    Returns:
        the count; `None` without a scaler, before the first step, or where none is kept.
    """
    if getattr(optimizer, "scaler", None) is None:
        return None
    for state in optimizer.state.values():
        count = state.get("step")
        return count.detach().clone() if isinstance(count, torch.Tensor) else count
    return None


def without_update(before: Updates, after: Updates) -> bool:
    """Whether a step between two counts updated nothing; waits for both."""
    return after is not None and float(after) == float(before or 0.0)


class OverflowWatch:
    """Tells after each step whether an fp16 overflow kept the optimizer from updating anything."""

    def __init__(self) -> None:
        self._updates: Updates = None

    def stepped(self, optimizer: Any) -> Callable[[], bool]:
        """Note a step that has just been done; whoever calls the answer waits for the GPU.

        Args:
            optimizer: as a callback gets it.
        """
        before, after = self._updates, updates(optimizer)
        self._updates = after
        said = bool(getattr(optimizer, "step_was_skipped", False))
        return lambda: said or without_update(before, after)
