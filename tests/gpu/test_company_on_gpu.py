"""Strangers on a GPU that is measured, as driver and allocator show them; `pytest -m gpu`."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import DeviceBusyError
from academic_pretraining.gpus import Hardware, ask_nvidia_smi, detect_hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import get_model
from academic_pretraining.occupancy import Company, gpus_alone, others_on

pytestmark = pytest.mark.gpu

BRIEF = Effort(
    timing_seconds=1.0, most_timings=1, most_refinements=0, micro_batch_sizes=(4,), saves=False
)
STRANGER = """
import sys
import torch
free, _ = torch.cuda.mem_get_info()
wanted = float(sys.argv[1]) * 2**30
kept = torch.empty(int(wanted if wanted > 0 else free + wanted), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("is there", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def hardware() -> Hardware:
    return dataclasses.replace(detect_hardware(os.environ), gpus_per_node=1)


@pytest.fixture
def stranger() -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """Have another process take so many GiB of the first GPU; of a negative number, leave them."""
    with contextlib.ExitStack() as processes:

        def come(gib: float) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", STRANGER, str(gib)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            processes.callback(process.wait)
            processes.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "is there\n"
            return process

        yield come


@pytest.fixture
def run(hardware, tmp_path):
    """Measure, with the processes of another setting launched meanwhile."""

    def run(alone):
        config = TrainingConfig(hardware=hardware, recipe=get_model("pythia-14m"), method=Method())
        sessions = Sessions(tmp_path / "sessions", alone=alone, ahead=True)
        sessions.more = True
        try:
            return measure(config, BRIEF, sessions=sessions)
        finally:
            sessions.close()

    return run


def test_processes_that_wait_are_no_company(run, hardware):
    found = run(lambda: gpus_alone(hardware, os.environ, patience_seconds=20.0))
    assert (found.outcome, found.company) == ("measured", "")


def test_a_stranger_with_little_memory_is_seen(hardware, stranger):
    assert others_on(hardware, os.environ, patience_seconds=20.0) == ""
    process = stranger(0.01)
    if not list(ask_nvidia_smi("compute-apps", "pid")):
        pytest.skip("this container hides who computes")
    assert others_on(hardware, os.environ).startswith("GPU 0 has 0.")
    process.kill()
    process.wait()
    assert others_on(hardware, os.environ, patience_seconds=20.0) == ""


@pytest.mark.parametrize("allowed", [False, True])
def test_memory_that_a_stranger_took_is_no_result_unless_allowed(run, stranger, allowed):
    @contextlib.contextmanager
    def alone():
        stranger(-3.0)
        yield Company(allowed=allowed, first="a stranger" if allowed else "")

    if allowed:
        found = run(alone)
        assert (found.outcome, found.company) == ("out of memory", "a stranger")
    else:
        with pytest.raises(
            DeviceBusyError, match=r"they held \d+\.\d GiB when .* ran out of memory"
        ):
            run(alone)


def test_what_a_stranger_came_to_is_not_kept(run, stranger, hardware):
    @contextlib.contextmanager
    def alone():
        with gpus_alone(hardware, os.environ, patience_seconds=20.0) as company:
            stranger(4.0)
            yield company

    with pytest.raises(DeviceBusyError, match=r"others came to its GPUs meanwhile: GPU 0 has \d"):
        run(alone)
