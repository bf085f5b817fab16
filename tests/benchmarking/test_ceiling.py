import torch

from academic_pretraining.benchmarking.ceiling import ceiling_flops


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
