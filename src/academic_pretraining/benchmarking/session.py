"""The child's side of a session: torchrunx launches the ranks."""

import gc
import json
import os
import signal
from pathlib import Path

from academic_pretraining.benchmarking.agents_tmpdir import agents_tmpdir, restore_tmpdir
from academic_pretraining.benchmarking.orphaned import call_when_orphaned
from academic_pretraining.cores import thread_variables

# Longer than any probe may take: who waits in vain is ended at the probe's deadline, by the
# session's parent, and does not end before it by itself, which would be blamed.
COLLECTIVES_SECONDS = 24 * 3600


def main(directory: str, parent: str) -> None:
    """Launch the workers of a session; this is the child's side, `parent` is the other process."""
    call_when_orphaned(int(parent), lambda: os.killpg(0, signal.SIGKILL))

    gc.disable()
    import torchrunx

    from academic_pretraining.benchmarking.launcher_logs import accept_plain_log_records_only

    gc.enable()
    accept_plain_log_records_only()
    hardware = json.loads((Path(directory) / "hardware.json").read_text())
    cpu = hardware["gpu_type"] == "cpu"
    workers = hardware["gpus_per_node"]
    launcher = torchrunx.Launcher(
        hostnames=["localhost"] if hardware["num_nodes"] == 1 else "slurm",
        workers_per_host=workers,
        # gloo beside NCCL: FSDP reduces what it offloads to the host.
        backend="gloo" if cpu else "cpu:gloo,cuda:nccl",  # pyright: ignore[reportArgumentType]
        worker_timeout=COLLECTIVES_SECONDS,
        extra_env_vars={
            **thread_variables(workers, cpu=cpu, environment=os.environ),
            **agents_tmpdir(Path(directory) / "tmp"),
        },
    )
    launcher.set_logging_handlers(None)
    launcher.run(work, directory)


def work(directory: str) -> None:
    """Be one rank; here and not in `worker`, so that only ranks load transformers."""
    restore_tmpdir()

    # The collector would take a third of the imports' time, and a third of a second whenever
    # accelerate calls it, for what is never garbage.
    gc.disable()
    from academic_pretraining.benchmarking import worker

    gc.freeze()
    gc.enable()
    worker.work(directory)
