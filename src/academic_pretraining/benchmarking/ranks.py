"""What all ranks know together."""

from typing import Any

import torch.distributed as dist


def gather(mine: Any) -> list[Any]:
    """Collect an object of each rank, in their order; every rank must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
