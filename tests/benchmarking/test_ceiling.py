import torch

from academic_pretraining.benchmarking.ceiling import ceiling_flops


def test_matrix_products_are_timed_and_nothing_else_changes(tiny_config):
    before = torch.get_float32_matmul_precision()
    flops = ceiling_flops(tiny_config(), seconds=0.05)
    # Any CPU does more than 0.1 GFLOP/s, and none a PFLOP/s.
    assert 1e8 < flops < 1e15
    assert torch.get_float32_matmul_precision() == before
