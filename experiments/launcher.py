"""How the workers of a training are started, and whether they are those it was exported for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from academic_pretraining.benchmarking.storage import read_finite
from academic_pretraining.cores import allowed_cores
from academic_pretraining.errors import (
    HardwareMismatchError,
    InvalidConfigError,
    InvalidFileError,
)
from academic_pretraining.gpus import Hardware, gpu_type_of, visible_devices


@dataclass(frozen=True, kw_only=True)
class LauncherOptions:
    """Options of torchrunx.Launcher."""

    # The names first: the command line takes the first kind that fits.
    hostnames: Literal["auto", "slurm"] | list[str] = "auto"
    """Nodes to run on; `auto` takes the SLURM allocation, else this machine."""
    workers_per_host: int | Literal["cpu", "gpu"] | None = None
    """Processes on each node; by default one a GPU, or one on a CPU."""
    ssh_config_file: str | None = None
    """For connecting to nodes."""
    backend: str | None = None
    """Of torch.distributed; by default NCCL with gloo for what is offloaded, gloo on a CPU."""
    worker_timeout: int = 600
    """Seconds that a worker waits for the others."""
    agent_timeout: int = 60
    """Seconds that a node waits for the others."""
    env_file: str | None = None
    """File with environment variables for the workers."""

    def check(self) -> None:
        """Refuse what no launch can come of."""
        workers = self.workers_per_host
        if workers in (0, "0") or str(workers).startswith("-"):
            raise InvalidConfigError(
                f"--launcher.workers-per-host is {workers}, but must be at least 1"
            )
        for flag, number, most in (
            ("workers-per-host", workers, 1024),
            ("worker-timeout", self.worker_timeout, 10**6),
            ("agent-timeout", self.agent_timeout, 10**6),
        ):
            if isinstance(number, int) and not 1 <= number <= most:
                raise InvalidConfigError(
                    f"--launcher.{flag} is {number}, but must be from 1 to {most:,}"
                )
        for flag, name in (("ssh-config-file", self.ssh_config_file), ("env-file", self.env_file)):
            if name is not None and not os.path.isfile(name):  # noqa: PTH113, any name will do
                raise InvalidFileError(f"--launcher.{flag} {name} is no file: name one, or none")
        backends = (part.rpartition(":")[2] for part in (self.backend or "gloo").lower().split(","))
        if unknown := [name for name in backends if name not in ("nccl", "gloo", "mpi", "ucc")]:
            raise InvalidConfigError(
                f"--launcher.backend has {unknown[0]!r}, which torch.distributed lacks: give nccl, "
                "gloo, mpi or ucc"
            )
        if self.hostnames == "slurm" and "SLURM_JOB_ID" not in os.environ:
            raise InvalidConfigError(
                "--launcher.hostnames slurm was given, but this is no SLURM job: leave it out"
            )
        if isinstance(self.hostnames, list) and not all(self.hostnames or [""]):
            raise InvalidConfigError("--launcher.hostnames lacks a name: give one for each node")
        self.variables()

    def variables(self) -> dict[str, str]:
        """Read the file with environment variables.

        torchrunx would have a shell read it, which exports none of them, and where `sh` is not bash
        starts nothing.

        Raises:
            InvalidFileError: a line sets none, or the file cannot be read.
        """
        if self.env_file is None:
            return {}
        try:
            lines = read_finite(Path(self.env_file), "environment").splitlines()
        except (OSError, ValueError) as error:
            raise InvalidFileError(
                f"--launcher.env-file {self.env_file} cannot be read ({error}): name another"
            ) from error
        found = {}
        for number, line in enumerate(lines, start=1):
            text = line.strip().removeprefix("export ").strip()
            if not text or text.startswith("#"):
                continue
            name, is_set, value = text.partition("=")
            if not is_set or not name.isidentifier():
                raise InvalidFileError(
                    f"--launcher.env-file {self.env_file} sets no variable in line {number}: write "
                    "NAME=VALUE"
                )
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[name] = value[1:-1] if quoted else value
        return found

    def number_of_workers(
        self, setting: Mapping[str, Any], environment: Mapping[str, str]
    ) -> int | None:
        """Count the workers that would train a setting; `None` where only the nodes can say."""
        workers, slurm = self.workers_per_host, "SLURM_JOB_ID" in environment
        if isinstance(self.hostnames, list):
            nodes = len(self.hostnames)
        else:
            said = environment.get("SLURM_JOB_NUM_NODES", "") if slurm else "1"
            nodes = int(said) if said.isdecimal() else 0
        if isinstance(workers, str):
            if self.hostnames != "auto" or slurm:
                return None
            # As torchrunx counts them.
            return len(allowed_cores() if workers == "cpu" else visible_devices(environment))
        workers = workers or setting.get("hardware", {}).get("gpus_per_node", 0)
        return nodes * workers or None


def refuse_other_gpu(device_name: str, setting: Mapping[str, Any], *, source: Path) -> None:
    """Keep an export from training beside the prediction for another GPU.

    Args:
        device_name: the driver's, of a worker's GPU.
        setting: says for which hardware the export is, unless it stands alone.
        source: file of the export.

    Raises:
        HardwareMismatchError: it is another type.
    """
    if "hardware" not in setting:
        return
    declared, found = setting["hardware"]["gpu_type"], gpu_type_of(device_name)
    if found != declared:
        raise HardwareMismatchError(
            f"{source} was exported for {declared}, but a worker runs on {found}: export it "
            "for what is here, or ask for nodes with that GPU"
        )


def refuse_other_workers(
    number: int | None, setting: Mapping[str, Any], fields: Mapping[str, Any], *, source: Path
) -> None:
    """Keep an export from training with another batch than it was made for.

    Args:
        number: of workers over all nodes, if it is known.
        setting: says for which hardware the export is, unless it stands alone.
        fields: of TrainingArguments.
        source: file of the export.

    Raises:
        InvalidConfigError: there are more or fewer.
    """
    if number is None or "hardware" not in setting:
        return
    hardware = Hardware(**setting["hardware"])
    if number == hardware.world_size:
        return
    # Defaults of TrainingArguments.
    each = fields.get("per_device_train_batch_size", 8)
    each *= fields.get("gradient_accumulation_steps", 1)
    raise InvalidConfigError(
        f"{source} was exported for {hardware.num_nodes} x {hardware.gpus_per_node} workers (nodes "
        f"x GPUs in each), a batch of {each * hardware.world_size:,}, but {number} would train, "
        f"with a batch of {each * number:,}: start {hardware.world_size}, with "
        "--launcher.hostnames and --launcher.workers-per-host, or export it for what is here"
    )
