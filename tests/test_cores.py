import os
from pathlib import Path

import pytest

from academic_pretraining import cores
from academic_pretraining.cores import (
    allowed_cores,
    cores_of_a_worker,
    thread_variables,
    usable_cores,
)


@pytest.fixture
def host(monkeypatch):
    """Be a host with so many cores, of which this process may run on some, and so many GPUs."""

    def make(count: int, allowed: int, gpus: int) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: count)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(allowed)))
        monkeypatch.setattr(cores, "_OWN_CGROUP", Path("/nowhere"))
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
    assert thread_variables(2, cpu=False, environment={"OMP_NUM_THREADS": "3"}) == {
        "OMP_NUM_THREADS": "3",
        "TORCHINDUCTOR_COMPILE_THREADS": "16",
    }


def test_compiling_takes_no_more_threads_than_torch_would(host):
    host(128, 128, 1)
    threads = thread_variables(1, cpu=False, environment={})
    assert threads == {"OMP_NUM_THREADS": "128", "TORCHINDUCTOR_COMPILE_THREADS": "32"}


@pytest.mark.parametrize(
    ("own", "quotas", "usable"),
    [
        # A container sees its own group as the root.
        ("/", {"": "800000 100000"}, 8),
        ("/", {"": "max 100000"}, 64),
        ("/", {"": "50000 100000"}, 1),
        # A job of a queue, in a group inside others.
        ("/slurm/job_7/step_0", {"slurm/job_7": "400000 100000", "slurm": "max 100000"}, 4),
        ("/a/b", {"a": "300000 100000", "a/b": "600000 100000"}, 3),
        ("/a", {"a": "nonsense"}, 64),
        ("/a", {}, 64),
        ("/../..", {}, 64),
    ],
)
def test_a_quota_is_kept(host, tmp_path, monkeypatch, own, quotas, usable):
    host(64, 64, 1)
    (tmp_path / "own").write_text(f"1:name=systemd:/x\n0::{own}\n")
    for folder, text in quotas.items():
        path = tmp_path / "groups" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "cpu.max").write_text(f"{text}\n")
    monkeypatch.setattr(cores, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path / "groups")
    assert usable_cores() == usable


def test_a_system_without_affinity_allows_all_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert allowed_cores() == {0, 1, 2}
