from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from academic_pretraining.benchmarking.ranks import gather, let_collectives_wait


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Be the only rank."""
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    yield
    dist.destroy_process_group()


def test_groups_that_libraries_make_wait_as_long_as_asked(alone):
    let_collectives_wait(7200.0)
    group: Any = dist.new_group([0])
    assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(hours=2)


@pytest.mark.filterwarnings("ignore:Attempted to get default timeout for nccl")
def test_nccl_has_a_default_of_its_own(monkeypatch):
    defaults: Any = distributed_c10d
    for present in (timedelta(minutes=10), None):
        monkeypatch.setattr(defaults, "default_pg_nccl_timeout", present)
        monkeypatch.setattr(defaults, "default_pg_timeout", timedelta(minutes=30))
        let_collectives_wait(7200.0)
        assert defaults.default_pg_nccl_timeout == (present and timedelta(hours=2))
        # torch reads it for each new group, where it was built with NCCL.
        assert defaults._get_default_timeout("nccl") == timedelta(hours=2)


def test_a_single_rank_knows_what_all_know(alone):
    assert gather({"mine": 1}) == [{"mine": 1}]
