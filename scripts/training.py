"""Train a model with exported settings. Copy this file into your project and put your data in.

What to change is marked with YOUR DATA; the rest runs as it is, on one GPU or on many nodes.
"""

import dataclasses
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import tyro

from academic_pretraining.errors import (
    AcademicPretrainingError,
    InvalidConfigError,
    InvalidFileError,
)
from academic_pretraining.gpus import Hardware, check_hardware
from academic_pretraining.models import MODELS, get_model
from experiments.export import read_json, read_setting

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    ModelName = str
else:
    ModelName = Literal[tuple(MODELS)]


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
    fields = read_json(training_arguments)
    setting = read_setting(training_arguments)
    if (exported := setting.get("model", model_type)) != model_type:
        raise InvalidFileError(
            f"{training_arguments} was exported for {exported}, but --model-type is {model_type}: "
            "give the same model"
        )
    if stop_after_steps is not None and stop_after_steps < 1:
        raise InvalidConfigError(
            f"--stop-after-steps is {stop_after_steps}, but must be at least 1"
        )
    if launcher.workers_per_host in (0, "0") or str(launcher.workers_per_host).startswith("-"):
        raise InvalidConfigError(
            f"--launcher.workers-per-host is {launcher.workers_per_host}, but must be at least 1"
        )
    if resume and not any(output_dir.glob("checkpoint-*")):
        raise InvalidConfigError(
            f"--resume was given, but {output_dir} holds no checkpoint: leave it out to begin"
        )
    if not next(path for path in (output_dir, *output_dir.parents) if path.exists()).is_dir():
        raise InvalidFileError(
            f"{output_dir} cannot be a folder for checkpoints, for it is a file or below one: "
            "name another"
        )
    here = launcher.hostnames == "auto" and "SLURM_JOB_ID" not in os.environ
    if here and (hardware := setting.get("hardware")):
        check_hardware(Hardware(**hardware | {"num_nodes": 1}), os.environ)
    fields["output_dir"] = str(output_dir.resolve())
    os.environ.setdefault("TORCHRUNX_LOG_DIR", str(output_dir.resolve() / "logs"))

    show_workers(sys.stdout)
    from academic_pretraining.benchmarking.comparison import comparison_text, write_speed

    report = launch(
        fields,
        setting,
        model_type,
        launcher,
        source=training_arguments,
        stop_after_steps=stop_after_steps,
        resume=resume,
    )
    print(comparison_text(report))
    write_speed(report, output_dir)


def show_workers(stream: TextIO) -> None:
    """Show what rank 0 prints, which comes back as log records of level INFO.

    The agents between here and the workers are left out: torchrunx ends them with a signal, about
    which they complain.
    """
    console = logging.StreamHandler(stream)
    console.addFilter(lambda record: getattr(record, "local_rank", 0) is not None)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[console])


def launch(
    fields: dict,
    setting: dict,
    model_type: str,
    launcher: LauncherOptions,
    *,
    source: Path,
    **stopping,
) -> dict:
    """Train on all workers; returns how fast it was, as `speed_report` says."""
    import torchrunx

    logging.getLogger("torchrunx").setLevel(logging.WARNING)
    _check_fields(fields, source)
    cpu = bool(fields.get("use_cpu"))
    workers = launcher.workers_per_host or setting.get("hardware", {}).get("gpus_per_node")
    workers = workers or (1 if cpu else "gpu")
    # As many threads as under the benchmark: what is offloaded is computed by them.
    threads = len(os.sched_getaffinity(0)) // (workers if isinstance(workers, int) else 8)
    launched = torchrunx.Launcher(
        hostnames=launcher.hostnames,
        workers_per_host=workers,
        ssh_config_file=launcher.ssh_config_file,
        backend=launcher.backend or ("gloo" if cpu else "cpu:gloo,cuda:nccl"),  # pyright: ignore
        worker_timeout=launcher.worker_timeout,
        agent_timeout=launcher.agent_timeout,
        extra_env_vars={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, threads)))},
        env_file=launcher.env_file,
    ).run(train, fields, model_type, setting, **stopping)
    return launched.rank(0)


def train(
    fields: dict,
    model_type: str,
    setting: dict,
    *,
    stop_after_steps: int | None = None,
    stop_within_seconds: float | None = None,
    resume: bool = False,
) -> dict:
    """Train on one worker; returns how fast it was.

    It stops at the schedule's end, after so many steps, or when the step time is known well
    enough, within so many seconds of timed steps.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from academic_pretraining.benchmarking import comparison
    from academic_pretraining.benchmarking.build import build_model_for
    from academic_pretraining.benchmarking.cpu import allow_sharding_on_cpu
    from academic_pretraining.benchmarking.timing import StepTimer

    class StopEarly(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == stop_after_steps:
                control.should_training_stop = True

    arguments = TrainingArguments(**fields)
    allow_sharding_on_cpu(arguments)
    recipe = get_model(model_type)
    model = build_model_for(
        arguments,
        recipe,
        attention=setting.get("attention"),
        free_lunch=setting.get("free_lunch", True),
    )
    examples = arguments.world_size * arguments.per_device_train_batch_size
    examples *= arguments.gradient_accumulation_steps
    predicted = setting.get("prediction")
    how = {"units_per_step": examples * recipe.units_per_example, "unit": recipe.unit}
    timer = StepTimer(cuda=not arguments.use_cpu)
    callbacks = [timer, comparison.SaysSpeed(timer, predicted, **how), StopEarly()]
    if stop_within_seconds is not None:
        callbacks[1] = comparison.StopsWhenKnown(timer, limit_seconds=stop_within_seconds)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=make_dataset(model_type),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return comparison.speed_report(timer, predicted, **how)


def _check_fields(fields: dict, path: Path) -> None:
    from transformers import TrainingArguments

    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    if unknown := sorted(set(fields) - known):
        raise InvalidFileError(
            f"{path} holds {unknown[0]!r}, which is no field of TrainingArguments: write the file "
            "with scripts/to_training_arguments.py"
        )
    for field in dataclasses.fields(TrainingArguments):
        value = fields.get(field.name, 0)
        if type(field.default) in (int, float) and type(value) not in (int, float):
            raise InvalidFileError(
                f"{path} says {field.name} is {value!r}, but it must be a number: write the file "
                "with scripts/to_training_arguments.py"
            )


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except AcademicPretrainingError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
