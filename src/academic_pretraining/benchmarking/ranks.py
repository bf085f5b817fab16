"""What all ranks know together."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d


def gather(mine: Any) -> list[Any]:
    """Collect an object of each rank, in their order; every rank must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def let_collectives_wait(seconds: float) -> None:
    """Have collectives wait so long in the groups that libraries make for themselves (DeepSpeed).

    torch has no setting for it: it copies the default into this module, from where it is read with
    each new group (tests/benchmarking/test_ranks.py).
    """
    defaults: Any = distributed_c10d
    defaults.default_pg_timeout = timedelta(seconds=seconds)
    if defaults.default_pg_nccl_timeout is not None:
        defaults.default_pg_nccl_timeout = timedelta(seconds=seconds)
