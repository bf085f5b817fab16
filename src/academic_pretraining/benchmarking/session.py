"""The child's side of a session: torchrunx launches the ranks."""

import json
import os
import signal
import threading
import time
from pathlib import Path


def main(directory: str, parent: str) -> None:
    """Launch the workers of a session; this is the child's side, `parent` is the other process."""
    threading.Thread(target=_die_with_parent, args=(int(parent),), daemon=True).start()

    import torchrunx

    hardware = json.loads((Path(directory) / "hardware.json").read_text())
    cpu = hardware["gpu_type"] == "cpu"
    workers = hardware["gpus_per_node"]
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    launcher = torchrunx.Launcher(
        hostnames=["localhost"] if hardware["num_nodes"] == 1 else "slurm",
        workers_per_host=workers,
        # gloo beside NCCL: FSDP reduces what it offloads to the host.
        backend="gloo" if cpu else "cpu:gloo,cuda:nccl",  # pyright: ignore[reportArgumentType]
        extra_env_vars={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))},
    )
    launcher.set_logging_handlers(None)
    launcher.run(work, directory)


def work(directory: str) -> None:
    """Be one rank; here and not in `worker`, so that only ranks load transformers."""
    from academic_pretraining.benchmarking import worker

    worker.work(directory)


def _die_with_parent(parent: int) -> None:
    """End the whole group when the script that started it was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)
