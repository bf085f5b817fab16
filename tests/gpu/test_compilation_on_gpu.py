"""A compiler that really fails costs the compilation, not the setting; `pytest -m gpu`."""

import os

import pytest

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
