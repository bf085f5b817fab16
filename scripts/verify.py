"""Train exported settings for a few real steps and set their speed beside the prediction."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from _cli import run
from training import launch, show_workers

from academic_pretraining.errors import (
    InvalidConfigError,
    InvalidFileError,
    MeasurementError,
)
from academic_pretraining.gpus import Hardware, check_hardware
from academic_pretraining.models import get_model
from academic_pretraining.occupancy import gpus_alone, nobody_else
from experiments.export import is_prediction, read_json, read_setting
from experiments.launcher import LauncherOptions, refuse_other_workers


def main(
    training_arguments: Path,
    steps: int | None = None,
    limit_seconds: float = 120.0,
    tolerance: float = 0.03,
    memory_tolerance: float = 0.05,
    allow_busy_gpus: bool = False,
    launcher: LauncherOptions = LauncherOptions(),
) -> int:
    """Train exported settings for a few real steps and set their speed beside the prediction.

    The exit status is 1 where the prediction is off by more than a tolerance. Nothing is saved.
    Where another script measures on the same GPU, this one waits for its end, and says so.

    Args:
        training_arguments: JSON that scripts/to_training_arguments.py wrote.
        steps: optimizer steps, two of warm-up included; by default as many as give the step time a
            standard error of 1%.
        limit_seconds: of timed steps at most, where their number is not given; at least one is.
        tolerance: allowed relative error of the step time.
        memory_tolerance: likewise of the peak memory.
        allow_busy_gpus: train even where somebody else computes, which changes the figures.
        launcher: how the workers are started.
    """
    for name, value in (("--tolerance", tolerance), ("--memory-tolerance", memory_tolerance)):
        if not 0 < value < 1:
            raise InvalidConfigError(
                f"{name} is {value}, but must be above 0 and below 1: 0.03 allows 3%"
            )
    if not 0 < limit_seconds < 86_400:
        raise InvalidConfigError(
            f"--limit-seconds is {limit_seconds}, but must be above 0 and below 86400"
        )
    if steps is not None and steps < 3:
        raise InvalidConfigError(
            f"--steps is {steps}, but the first two are warm-up: give 3 or more"
        )
    launcher.check()
    fields = read_json(training_arguments)
    setting = read_setting(training_arguments)
    if "model" not in setting or not is_prediction(setting.get("prediction")):
        raise InvalidFileError(
            f"there is no prediction beside {training_arguments}: measure its setting with "
            "scripts/benchmark.py and export it again, unchanged, with "
            "scripts/to_training_arguments.py"
        )
    get_model(setting["model"])
    hardware = Hardware(**setting["hardware"])
    if launcher.workers_per_host not in (None, hardware.gpus_per_node):
        raise InvalidConfigError(
            f"--launcher.workers-per-host is {launcher.workers_per_host}, but the prediction is "
            f"for {hardware.gpus_per_node} GPUs in each node: leave it out"
        )
    if launcher.hostnames == "auto" and "SLURM_JOB_ID" not in os.environ:
        if hardware.num_nodes > 1:
            raise InvalidConfigError(
                f"the prediction is for {hardware.num_nodes} nodes, and this is one: run it in "
                "a SLURM job, or name the nodes with --launcher.hostnames"
            )
        check_hardware(hardware, os.environ)
    number = launcher.number_of_workers(setting, os.environ)
    refuse_other_workers(number, setting, fields, source=training_arguments)
    alone = nobody_else()
    if launcher.hostnames == "auto":
        alone = gpus_alone(
            hardware,
            os.environ,
            allow_busy=allow_busy_gpus,
            on_wait=lambda text: print(text, file=sys.stderr),
        )
    with alone as company:
        from academic_pretraining.benchmarking.arguments import check_fields

        check_fields(fields, training_arguments)
        report = _train(
            fields,
            setting,
            launcher,
            source=training_arguments,
            stop_after_steps=steps,
            stop_within_seconds=None if steps else limit_seconds,
        )
        if others := company.first or company.now():
            print(f"others were on the GPUs meanwhile: {others}", file=sys.stderr)
    if not report["steps"]:
        raise MeasurementError(
            f"the training of {training_arguments} ended before a step was timed: the first two, "
            "an epoch's first and fp16 overflows are left out; give more --steps"
        )
    from academic_pretraining.benchmarking.comparison import comparison_text, deviations

    print(comparison_text(report))
    allowed = {"step": tolerance, "peak memory": memory_tolerance}
    off = {name: e for name, e in deviations(report).items() if abs(e) > allowed[name]}
    for name, error in off.items():
        print(f"predicted {name} is {error:+.2%} off, more than {allowed[name]:.1%}")
    if not off:
        print("the prediction holds")
    return 1 if off else 0


def _train(
    fields: dict[str, Any],
    setting: dict[str, Any],
    launcher: LauncherOptions,
    *,
    source: Path,
    **stopping: Any,
) -> dict[str, Any]:
    """Train in a folder that goes; give the speed."""
    # The workers find training.py as this script did.
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    show_workers(sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TORCHRUNX_LOG_DIR", folder)
        here = fields | {"output_dir": folder, "save_strategy": "no"}
        return launch(here, setting, setting["model"], launcher, source=source, **stopping)


if __name__ == "__main__":
    run(main, stopped="nothing is kept, run the same command to begin again")
