import os

import pytest

from academic_pretraining import cores
from academic_pretraining.cores import cores_of_a_worker, worker_variables


@pytest.fixture
def host(monkeypatch):
    """Be a host with so many cores, of which this process may run on some, and so many GPUs."""

    def make(count: int, allowed: int, gpus: int) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: count)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(allowed)))
        monkeypatch.setattr(
            cores, "ask_nvidia_smi", lambda about, *figures: iter([["GPU-0"]] * gpus)
        )

    return make


@pytest.mark.parametrize(
    ("count", "allowed", "gpus", "workers", "cpu", "share"),
    [
        (16, 16, 1, 1, False, 16),
        # The other GPU's half is left to whoever comes.
        (32, 32, 2, 1, False, 16),
        (32, 32, 2, 2, False, 16),
        # A job of a queue that was given an eighth of the cores, and sees all GPUs.
        (64, 8, 8, 1, False, 8),
        # More workers than GPUs that nvidia-smi knows, as where it does not answer.
        (32, 32, 0, 4, False, 8),
        (2, 2, 0, 2, True, 1),
        (4, 4, 8, 1, True, 4),
        (1, 1, 0, 2, True, 1),
    ],
)
def test_a_worker_takes_its_share_of_the_host(host, count, allowed, gpus, workers, cpu, share):
    host(count, allowed, gpus)
    assert cores_of_a_worker(workers, cpu=cpu) == share


def test_a_worker_is_given_its_threads_unless_the_user_says_otherwise(host):
    host(32, 32, 2)
    assert worker_variables(2, cpu=False, environment={"OMP_NUM_THREADS": "3"}) == {
        "OMP_NUM_THREADS": "3",
        "TORCHINDUCTOR_COMPILE_THREADS": "16",
    }
