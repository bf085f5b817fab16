"""Train a model with exported settings. Copy this file into your project and put your data in.

What to change is marked with YOUR DATA; the rest runs as it is, on one GPU or on many nodes.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from _cli import ModelName, run

from academic_pretraining.errors import InvalidConfigError, InvalidFileError
from academic_pretraining.models import get_model
from experiments.export import setting_path

if TYPE_CHECKING:
    from torch.utils.data import Dataset


def make_dataset(model_type: str) -> "Dataset":
    """YOUR DATA: return a map-style dataset of the examples that the model trains on.

    This one is synthetic. Language models take dicts of `input_ids` and `labels`, image
    classifiers take `pixel_values` and `labels`.
    """
    from academic_pretraining.benchmarking.build import synthetic_dataset

    return synthetic_dataset(get_model(model_type), num_examples=10_000_000)


@dataclass(frozen=True, kw_only=True)
class LauncherOptions:
    """Options of torchrunx.Launcher."""

    hostnames: list[str] | Literal["auto", "slurm"] = "auto"
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


def main(
    output_dir: Path,
    model_type: ModelName,
    training_arguments: Path,
    stop_after_steps: int | None = None,
    resume: bool = False,
    launcher: LauncherOptions = LauncherOptions(),
) -> None:
    """Train a model with exported settings.

    Args:
        output_dir: for checkpoints.
        model_type: what is trained.
        training_arguments: JSON that scripts/to_training_arguments.py wrote.
        stop_after_steps: end early, with the learning-rate schedule of the whole training.
        resume: go on from the last checkpoint in the output folder.
        launcher: how the workers are started.
    """
    fields = _read(training_arguments)
    setting_file = setting_path(training_arguments)
    setting = _read(setting_file) if setting_file.exists() else {}
    if (exported := setting.get("model", model_type)) != model_type:
        raise InvalidFileError(
            f"{training_arguments} was exported for {exported}, but --model-type is {model_type}: "
            "give the same model"
        )
    if stop_after_steps is not None and stop_after_steps < 1:
        raise InvalidConfigError(
            f"--stop-after-steps is {stop_after_steps}, but must be at least 1"
        )
    fields["output_dir"] = str(output_dir.resolve())
    os.environ.setdefault("TORCHRUNX_LOG_DIR", str(output_dir.resolve() / "logs"))

    import torchrunx

    _check_fields(fields, training_arguments)
    cpu = bool(fields.get("use_cpu"))
    workers = launcher.workers_per_host or setting.get("hardware", {}).get("gpus_per_node")
    workers = workers or (1 if cpu else "gpu")
    # As many threads as under the benchmark: what is offloaded is computed by them.
    threads = len(os.sched_getaffinity(0)) // (workers if isinstance(workers, int) else 8)
    torchrunx.Launcher(
        hostnames=launcher.hostnames,
        workers_per_host=workers,
        ssh_config_file=launcher.ssh_config_file,
        backend=launcher.backend or ("gloo" if cpu else "cpu:gloo,cuda:nccl"),  # pyright: ignore
        worker_timeout=launcher.worker_timeout,
        agent_timeout=launcher.agent_timeout,
        extra_env_vars={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, threads)))},
        env_file=launcher.env_file,
    ).run(train, fields, model_type, setting, stop_after_steps, resume)


def train(
    fields: dict, model_type: str, setting: dict, stop_after_steps: int | None, resume: bool
) -> None:
    """Train on one worker."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from academic_pretraining.benchmarking.build import build_model
    from academic_pretraining.benchmarking.comparison import (
        speed_report,
        speed_text,
        write_speed,
    )
    from academic_pretraining.benchmarking.cpu import allow_sharding_on_cpu
    from academic_pretraining.benchmarking.timing import StepTimer

    class StopEarly(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == stop_after_steps:
                control.should_training_stop = True

    output_dir = Path(fields["output_dir"])
    arguments = TrainingArguments(**fields)
    allow_sharding_on_cpu(arguments)
    model = build_model(
        get_model(model_type),
        attention=setting.get("attention"),
        free_lunch=setting.get("free_lunch", True),
        seed=arguments.seed,
    )
    timer = StepTimer(cuda=not arguments.use_cpu)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=make_dataset(model_type),
        callbacks=[timer, StopEarly()],
    )
    trainer.train(resume_from_checkpoint=resume)
    report = speed_report(timer, setting.get("prediction"))
    if trainer.is_world_process_zero():
        print(speed_text(report))
        write_speed(report, output_dir)


def _check_fields(fields: dict, path: Path) -> None:
    from transformers import TrainingArguments

    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    if unknown := sorted(set(fields) - known):
        raise InvalidFileError(
            f"{path} holds {unknown[0]!r}, which is no field of TrainingArguments: write the file "
            "with scripts/to_training_arguments.py"
        )


def _read(path: Path) -> dict:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidFileError(
            f"{path} is not a readable JSON file ({error}): write one with "
            "scripts/to_training_arguments.py"
        ) from error
    if not isinstance(data, dict):
        raise InvalidFileError(
            f"{path} holds no JSON object: write one with scripts/to_training_arguments.py"
        )
    return data


if __name__ == "__main__":
    run(main)
