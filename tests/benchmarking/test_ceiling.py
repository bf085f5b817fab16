import pytest
import torch

from academic_pretraining.benchmarking import ceiling
from academic_pretraining.benchmarking.ceiling import ceiling_flops
from academic_pretraining.methods import Method


def test_matrix_products_are_timed_and_nothing_else_changes(tiny_config, monkeypatch):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    flops = ceiling_flops(tiny_config(), seconds=0.05)
    # Any CPU does more than 0.1 GFLOP/s, and none a PFLOP/s.
    assert 1e8 < flops < 1e15
    assert matmul.fp32_precision == before
    # What the Trainer sets for all products still reaches them.
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    assert matmul.fp32_precision == "tf32"


def test_the_slowest_rank_counts(tiny_config, monkeypatch):
    monkeypatch.setattr(ceiling, "gather", lambda mine: [3 * mine, mine, 2 * mine])
    monkeypatch.setattr(ceiling, "_timed", lambda *_: 0.5)
    assert ceiling_flops(tiny_config(), seconds=0.01) == 2 * 1024**3 / 0.5


@pytest.mark.parametrize("free_lunch", [True, False])
def test_products_are_rounded_as_the_training_rounds_them(tiny_config, free_lunch, monkeypatch):
    config = tiny_config(Method(free_lunch=free_lunch))
    # On a CPU, as an H100 would.
    monkeypatch.setattr(type(config), "tf32", free_lunch)
    found = set()

    def timed(*_: object) -> float:
        found.add(torch.backends.cuda.matmul.fp32_precision)
        return 0.5

    monkeypatch.setattr(ceiling, "_timed", timed)
    ceiling_flops(config, seconds=0.01)
    assert found == {"tf32" if free_lunch else "ieee"}
