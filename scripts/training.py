"""Train a model with exported settings. Copy this file into your project and put your data in.

What to change is marked with YOUR DATA; the rest runs as it is, on one GPU or on many nodes.
"""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import tyro

from academic_pretraining.benchmarking.checkpoints import (
    choose,
    made,
    refuse_lost_states,
    refuse_lost_weights,
)
from academic_pretraining.cores import thread_variables, usable_cores
from academic_pretraining.errors import InvalidConfigError, InvalidFileError, TrainingError
from academic_pretraining.gpus import Hardware, check_hardware, visible_devices
from academic_pretraining.models import MODELS, get_model
from experiments.command_line import answer
from experiments.export import is_prediction, read_json, read_setting, warn_without
from experiments.launcher import LauncherOptions, refuse_other_gpu, refuse_other_workers

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
        stop_after_steps: end early, with the learning-rate schedule of the whole training; the last
            checkpoint is then one that save_steps asks for.
        resume: go on from the last whole checkpoint in the output folder.
        launcher: how the workers are started.
    """
    fields = read_json(training_arguments)
    setting = read_setting(training_arguments)
    if (exported := setting.get("model", model_type)) != model_type:
        raise InvalidFileError(
            f"{training_arguments} was exported for {exported}, but --model-type is {model_type}: "
            "give the same model"
        )
    if setting.get("prediction") is not None and not is_prediction(setting["prediction"]):
        raise InvalidFileError(
            f"the prediction beside {training_arguments} is none: export it again with "
            "scripts/to_training_arguments.py"
        )
    if stop_after_steps is not None and stop_after_steps < 1:
        raise InvalidConfigError(
            f"--stop-after-steps is {stop_after_steps}, but must be at least 1"
        )
    launcher.check()
    checkpoint = choose(output_dir, resume=resume)
    here = launcher.hostnames == "auto" and "SLURM_JOB_ID" not in os.environ
    if here and (hardware := setting.get("hardware")):
        check_hardware(Hardware(**hardware | {"num_nodes": 1}), os.environ)
    from academic_pretraining.benchmarking.arguments import check_fields

    check_fields(fields, training_arguments)
    number = launcher.number_of_workers(setting, os.environ)
    refuse_other_workers(number, setting, fields, source=training_arguments)
    if checkpoint and (over := checkpoint.why_over(fields, stop_after_steps)):
        print(over)
        return
    warn_without(setting, training_arguments)
    fields["output_dir"] = str(output_dir.resolve())
    logs = os.environ.setdefault("TORCHRUNX_LOG_DIR", str(output_dir.resolve() / "logs"))

    show_workers(sys.stdout)
    from academic_pretraining.benchmarking.comparison import comparison_text, write_speed

    with made(output_dir), made(Path(logs)):
        report = launch(
            fields,
            setting,
            model_type,
            launcher,
            source=training_arguments,
            stop_after_steps=stop_after_steps,
            checkpoint=checkpoint and checkpoint.path.resolve(),
        )
    print(comparison_text(report))
    try:
        write_speed(report, output_dir)
    except OSError as error:
        raise TrainingError(
            f"the training is over, but its speed was not written: {error}"
        ) from error


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
    # Take this out where the Trainer below gets an eval_dataset.
    if fields.get("eval_strategy", "no") != "no":
        raise InvalidFileError(
            f"{source} says eval_strategy is {fields['eval_strategy']!r}, but there is no data to "
            'evaluate on: say "no", or give the Trainer of scripts/training.py an eval_dataset'
        )
    import torchrunx

    from academic_pretraining.benchmarking.tended import tended

    cpu = bool(fields.get("use_cpu"))
    workers = launcher.workers_per_host or setting.get("hardware", {}).get("gpus_per_node")
    workers = workers or (1 if cpu else "gpu")
    if workers == "cpu":
        local = usable_cores()
    else:
        local = workers if isinstance(workers, int) else len(visible_devices(os.environ))
    # As many threads as under the benchmark: what is offloaded is computed by them.
    threads = thread_variables(local, cpu=cpu, environment=os.environ) if local else {}

    def start(variables: dict[str, str]) -> dict:
        launched = torchrunx.Launcher(
            hostnames=launcher.hostnames,
            workers_per_host=workers,
            ssh_config_file=launcher.ssh_config_file,
            backend=launcher.backend or ("gloo" if cpu else "cpu:gloo,cuda:nccl"),  # pyright: ignore
            worker_timeout=launcher.worker_timeout,
            agent_timeout=launcher.agent_timeout,
            extra_env_vars=threads | launcher.variables() | variables,
        ).run(train, fields, model_type, setting, source=source, **stopping)
        return launched.rank(0)

    return tended(start, source=source)


def train(
    fields: dict,
    model_type: str,
    setting: dict,
    *,
    source: Path,
    stop_after_steps: int | None = None,
    stop_within_seconds: float | None = None,
    checkpoint: Path | None = None,
) -> dict:
    """Train on one worker, from a checkpoint on if there is one; returns how fast it was.

    It stops at the schedule's end, after so many steps, or when the step time is known well
    enough, within so many seconds of timed steps.
    """
    from academic_pretraining.benchmarking.agents_tmpdir import restore_tmpdir

    restore_tmpdir()
    import torch
    from transformers import Trainer, TrainerCallback

    from academic_pretraining.benchmarking import comparison
    from academic_pretraining.benchmarking.arguments import build
    from academic_pretraining.benchmarking.build import build_model_for
    from academic_pretraining.benchmarking.cpu import allow_sharding_on_cpu
    from academic_pretraining.benchmarking.garbage import FreesCompilerGarbage
    from academic_pretraining.benchmarking.host import HostWatch
    from academic_pretraining.benchmarking.marks import MarksCheckpoints
    from academic_pretraining.benchmarking.resuming import ready_to_load
    from academic_pretraining.benchmarking.timing import StepTimer

    class StopEarly(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if stop_after_steps and state.global_step >= stop_after_steps:
                control.should_training_stop = True

    arguments = build(fields, source)
    refuse_other_workers(arguments.world_size, setting, fields, source=source)
    if arguments.device.type == "cuda":
        refuse_other_gpu(torch.cuda.get_device_name(), setting, source=source)
    allow_sharding_on_cpu(arguments)
    recipe = get_model(model_type)
    model = build_model_for(
        arguments,
        recipe,
        attention=setting.get("attention"),
        free_lunch=setting.get("free_lunch", True),
    )
    if checkpoint and not arguments.deepspeed:
        refuse_lost_states(checkpoint)
        if not arguments.fsdp:
            refuse_lost_weights(checkpoint, model)
    examples = arguments.world_size * arguments.per_device_train_batch_size
    examples *= arguments.gradient_accumulation_steps
    predicted = setting.get("prediction")
    how = {"units_per_step": examples * recipe.units_per_example, "unit": recipe.unit}
    timer = StepTimer(cuda=not arguments.use_cpu)
    host = HostWatch(timer.warm_up_steps)
    speed: TrainerCallback = comparison.SaysSpeed(
        timer, predicted, **how, last_step=stop_after_steps
    )
    if stop_within_seconds is not None:
        speed = comparison.StopsWhenKnown(
            timer, predicted=predicted, limit_seconds=stop_within_seconds
        )
    callbacks = [timer, speed, StopEarly(), host, MarksCheckpoints()]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=make_dataset(model_type),
        # Leave this one where it is, first, when you copy this: it frees memory.
        callbacks=[FreesCompilerGarbage(timer.warm_up_steps), *callbacks],
    )
    if checkpoint:
        ready_to_load(trainer)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return comparison.speed_report(timer, predicted, **how, host=host, ranks_per_node=here)


if __name__ == "__main__":
    STOPPED = "--resume goes on from the last checkpoint, where there is one"
    sys.exit(answer(tyro.cli, main, sys.argv[1:], stopped=STOPPED))
