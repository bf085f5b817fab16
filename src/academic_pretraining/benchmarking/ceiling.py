"""What matrix products alone reach on this very device."""

import time

import torch

from academic_pretraining.benchmarking.ranks import gather
from academic_pretraining.config import TrainingConfig
from academic_pretraining.models.recipe import Precision

_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}


def ceiling_flops(config: TrainingConfig, *, seconds: float = 0.3) -> float:
    """Measure square matrix products in a training's arithmetic; every rank must call it.

    A burst on a cool device, so that no training can be above it.

    Args:
        config: decides precision and TF32.
        seconds: how long to multiply, about.

    Returns:
        FLOP/s of the slowest rank's fastest product.
    """
    cuda = not config.hardware.gpu.is_cpu
    how = {"device": "cuda" if cuda else "cpu", "dtype": _DTYPES[config.precision]}
    # 8192 fills the largest GPU; a CPU would take seconds for one.
    size = 8192 if cuda else 1024
    # The Trainer sets a default that this inherits, unless it was ever set by another name.
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if config.tf32 else "ieee"
    try:
        left, right = (torch.randn(size, size, **how) for _ in range(2))
        torch.matmul(left, right)
        best = _timed(left, right, cuda)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            best = min(best, _timed(left, right, cuda))
    finally:
        matmul.fp32_precision = before
    return min(gather(2 * size**3 / best))


def _timed(left: torch.Tensor, right: torch.Tensor, cuda: bool) -> float:
    if not cuda:
        began = time.perf_counter()
        torch.matmul(left, right)
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.matmul(left, right)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
