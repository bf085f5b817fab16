"""Compilation on a real GPU: what it costs, once and again; `pytest -m gpu`."""

import os

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config
from torch.utils.checkpoint import checkpoint

from academic_pretraining.benchmarking.compiler import keep_recomputation
from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.gpus import detect_hardware
from academic_pretraining.methods import Method

pytestmark = pytest.mark.gpu

BRIEF = Effort(timing_seconds=1.0, most_timings=1, most_refinements=0, micro_batch_sizes=(1,))
# The last step of Triton's way to the GPU.
BROKEN_ASSEMBLER = """#!/bin/sh
case "$1" in --version) echo "Cuda compilation tools, release 12.8, V12.8.93"; exit;; esac
echo "ptxas fatal: no kernel for this" >&2
exit 1
"""


def test_a_gpu_without_an_assembler_is_measured_without_compilation(
    tiny_config, tmp_path, monkeypatch
):
    assembler = tmp_path / "ptxas"
    assembler.write_text(BROKEN_ASSEMBLER)
    assembler.chmod(0o755)
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(assembler))
    # What was compiled before would serve.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    gpu_type = detect_hardware(os.environ).gpu_type
    config = tiny_config(Method(free_lunch=True), workers=1, gpu_type=gpu_type)
    found = measure(config, BRIEF, sessions=Sessions(tmp_path / "sessions"))
    assert (found.outcome, found.compile) == ("measured", "failed")
    assert "ptxas" in found.compile_error
    assert found.best is not None
    assert not found.best.compiled


@pytest.fixture
def own_caches(tmp_path, monkeypatch):
    """Keep compiled code apart from what others left, and settings of the compiler as they were."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with config.patch(unsafe_marked_cacheable_functions={}):
        yield


@pytest.mark.usefixtures("own_caches")
def test_recomputation_is_compiled_once_and_draws_its_numbers_again():
    def attention(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    found = []
    for hits in ("fxgraph_cache_miss", "fxgraph_cache_hit"):
        torch.compiler.reset()
        keep_recomputation()
        counters.clear()
        torch.manual_seed(3)
        shape = (3, 1, 2, 16, 16)
        q, k, v = torch.randn(shape, device="cuda", dtype=torch.float16).requires_grad_()
        compiled = torch.compile(lambda *qkv: checkpoint(attention, *qkv, use_reentrant=False))
        y = compiled(q, k, v)
        weight = torch.randn_like(y)
        gradient = torch.autograd.grad((y * weight).sum(), v)[0]
        assert counters["inductor"]["fxgraph_cache_bypass"] == 0
        assert counters["inductor"][hits] == 2
        # The result is linear in v, if what was dropped is the same in both passes.
        products = (y * weight).double()
        apart = (gradient * v).double().sum() - products.sum()
        assert apart.abs() < 1e-3 * products.abs().sum()
        found.append((y.detach(), gradient))
    torch.testing.assert_close(*found)
