import time

import pytest
import torch
from one_rank import found_on_one_rank

from academic_pretraining.benchmarking import let_go
from academic_pretraining.methods import Sharding


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [Sharding.ZERO_2, Sharding.ZERO_3])
def test_nothing_of_a_trained_model_is_left(sharding, tmp_path):
    assert found_on_one_rank("let_go.py", sharding, tmp_path, "helped") == []


@pytest.mark.slow
@pytest.mark.thorough
def test_without_help_deepspeed_keeps_a_model_under_zero_3(tmp_path):
    # When this fails, DeepSpeed lets go by itself: take `_empty_zero_3` out.
    assert found_on_one_rank("let_go.py", Sharding.ZERO_3, tmp_path, "unhelped") == [
        "model",
        "engine",
        "optimizer",
    ]


@pytest.mark.slow
def test_a_deepspeed_that_has_changed_costs_no_result(tmp_path):
    assert found_on_one_rank("let_go.py", Sharding.ZERO_2, tmp_path, "changed") == []


GIB = 2**30


@pytest.fixture
def ranks(monkeypatch):
    """Stand in for two ranks, of which NCCL keeps something through a number of exchanges."""
    made = []

    def have(mine: int, other: int | None, kept_through: int):
        def kept() -> bool:
            return made.count("exchange") < kept_through

        def gather(much: bool) -> list[bool]:
            return [much] if other is None else [much, other > 0.8 * GIB and kept()]

        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: mine if kept() else 0)
        monkeypatch.setattr(let_go, "gather", gather)
        return made

    monkeypatch.setattr(let_go, "_exchange", lambda: made.append("exchange"))
    monkeypatch.setattr(time, "sleep", made.append)
    return have


@pytest.mark.parametrize(("mine", "other"), [(2 * GIB, 2 * GIB), (0, 2 * GIB), (GIB, 0)])
@pytest.mark.parametrize("kept_through", [1, 2, 3])
def test_what_nccl_keeps_on_any_rank_is_freed_by_further_exchanges(
    ranks, mine, other, kept_through
):
    made = ranks(mine, other, kept_through)
    assert let_go.leftover_bytes(80 * GIB) == 0
    # The watchdog looks every tenth of a second; before it has, an exchange frees nothing.
    assert made == [0.2, "exchange"] * kept_through


def test_what_is_left_for_good_is_told(ranks):
    made = ranks(2 * GIB, 2 * GIB, 99)
    assert let_go.leftover_bytes(80 * GIB) == 2 * GIB
    assert made.count("exchange") == 3


@pytest.mark.parametrize(("mine", "other"), [(GIB // 2, GIB // 2), (2 * GIB, None)])
def test_nothing_is_exchanged_for_little_or_by_a_single_rank(ranks, mine, other):
    made = ranks(mine, other, 99)
    assert let_go.leftover_bytes(80 * GIB) == mine
    assert not made
