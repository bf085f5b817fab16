"""Which share of its host's cores a worker computes with."""

import os
from collections.abc import Mapping

from academic_pretraining.gpus import ask_nvidia_smi


def cores_of_a_worker(workers: int, *, cpu: bool) -> int:
    """Divide the host's cores fairly.

    A worker with a GPU takes that GPU's share, also where the others are free: another job may
    come to them at any time, and threads that wait for each other on fewer cores than they need
    take 30 times as long to collate a micro-batch (artifacts/README.md).

    Args:
        workers: of one job on this host.
        cpu: whether they compute without GPUs.
    """
    cores = len(os.sched_getaffinity(0)) // workers
    if not cpu:
        gpus = len(list(ask_nvidia_smi("gpu", "uuid")))
        cores = min(cores, (os.cpu_count() or 1) // max(gpus, workers))
    return max(1, cores)


def worker_variables(workers: int, *, cpu: bool, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables with a worker's number of threads; what the user has set, stays.

    Args:
        workers: of one job on this host.
        cpu: whether they compute without GPUs.
        environment: of this process.
    """
    cores = str(cores_of_a_worker(workers, cpu=cpu))
    names = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
    return {name: environment.get(name) or cores for name in names}
