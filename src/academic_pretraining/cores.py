"""The host's cores: which of them this process may use, and a worker's share of them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from academic_pretraining.gpus import ask_nvidia_smi

# torch/_inductor/config.py, of its own default.
_MOST_COMPILE_THREADS = 32
# Of the host's cores. With half of them busy, a micro-batch took 16 ms to be collated by a thread
# on each core, in place of half a millisecond (artifacts/README.md).
_CROWDED_SHARE = 0.2
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def allowed_cores() -> set[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """How many cores' time this process may use, a container's quota included; at least 1."""
    quotas = [int(quota) for quota in _quotas()]
    return max(1, min([len(allowed_cores()), *quotas]))


def _quotas() -> Iterator[float]:
    """Yield the cores that each control group around this process may use (Linux, version 2)."""
    try:
        own = _OWN_CGROUP.read_text().rpartition("::")[2].strip().lstrip("/")
    except OSError:
        return
    folder = _CGROUPS / own
    for path in (folder, *folder.parents):
        if not path.is_relative_to(_CGROUPS):
            return
        try:
            quota, period = (path / "cpu.max").read_text().split()
            if quota != "max":
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def cores_of_a_worker(workers: int, *, cpu: bool) -> int:
    """Divide the host's cores fairly.

    A worker with a GPU takes that GPU's share, also where the others are free: another job may
    come to them at any time, and threads that wait for each other on fewer cores than they need
    take 30 times as long to collate a micro-batch (artifacts/README.md).

    Args:
        workers: of one job on this host, one at least.
        cpu: whether they compute without GPUs.

    Returns:
        cores, one at least.
    """
    cores = usable_cores() // workers
    if not cpu:
        gpus = len(list(ask_nvidia_smi("gpu", "uuid")))
        cores = min(cores, (os.cpu_count() or 1) // max(gpus, workers))
    return max(1, cores)


def crowd(other_cpu_share: float | None) -> str:
    """Warn of figures that other processes may have changed; nothing where they were few.

    Args:
        other_cpu_share: of the host's cores, what others kept busy meanwhile; `None` if unknown.
    """
    if other_cpu_share is None or other_cpu_share < _CROWDED_SHARE:
        return ""
    return (
        f"others kept {other_cpu_share:.0%} of the host's cores busy meanwhile, which slows data "
        "loading and offloading"
    )


def thread_variables(workers: int, *, cpu: bool, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables with how many threads a worker computes and compiles with.

    Args:
        workers: of one job on this host, one at least.
        cpu: whether they compute without GPUs.
        environment: of this process; what the user has set there, stays.
    """
    cores = cores_of_a_worker(workers, cpu=cpu)
    threads = {
        "OMP_NUM_THREADS": cores,
        "TORCHINDUCTOR_COMPILE_THREADS": min(cores, _MOST_COMPILE_THREADS),
    }
    return {name: environment.get(name) or str(number) for name, number in threads.items()}
