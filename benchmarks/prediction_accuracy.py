"""How far the predicted step time and peak memory are from those of real training.

`python benchmarks/prediction_accuracy.py --output FILE.csv [--steps 10] [--limit-seconds S]
[--models M ...] [--only LABEL ...] [--part I/N]` takes every measured setting of the workspace
(`TANGO_WORKSPACE_DIR`, else tango_workspace/) that fits this machine, exports it, trains it with
scripts/training.py at the recipe's real global batch for so many optimizer steps, and adds a row to
the file. Settings that have a row already are left out, so that the same command goes on. It takes
turns with scripts that measure on the same GPUs; `--part 0/2` and `--part 1/2` share the settings
between two processes, with a file each.
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from academic_pretraining.errors import DeviceBusyError
from academic_pretraining.gpus import detect_hardware
from academic_pretraining.occupancy import PATIENCE_SECONDS, gpus_alone
from academic_pretraining.results import CURRENT, frame, method_of, select
from experiments.command_line import workspace_dir
from experiments.workspace import read_records

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
# Launching and compiling, where that was not measured.
SETUP_SECONDS = 90.0


def main() -> None:
    """Train setting after setting and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit-seconds", type=float, default=float("inf"))
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--only", nargs="*", help="labels, such as 'free-lunch + ZeRO-2'")
    parser.add_argument("--part", default="0/1")
    options = parser.parse_args()
    deadline = time.monotonic() + options.limit_seconds
    rows = read(options.output)
    part, parts = map(int, options.part.split("/"))
    for setting in settings():
        label = method_of(setting).label
        if sum(f"{setting['model']} {label}".encode()) % parts != part:
            continue
        if options.models and setting["model"] not in options.models:
            continue
        names = ("model", "gpu_type", "gpus_per_node")
        wanted = [label, *(setting[name] for name in names)]
        known = any([row["method"], *(row[name] for name in names)] == wanted for row in rows)
        if known or (options.only and label not in options.only):
            continue
        # What is known about it already says whether it would end in time.
        setup = setting["restart_seconds"] or SETUP_SECONDS
        if time.monotonic() + setup + setting["step_seconds"] * options.steps > deadline:
            print(f"left out for want of time: {setting['model']} {label}", file=sys.stderr)
            continue
        if row := compare(setting, options.steps, deadline):
            rows.append(row)
            pl.DataFrame(rows).write_csv(options.output)
    if rows:
        report(rows)


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of an earlier run."""
    return pl.read_csv(path).to_dicts() if path.exists() else []


def settings() -> list[dict[str, Any]]:
    """List what was measured on hardware like this machine's, the quickest step first."""
    workspace = workspace_dir(os.environ)
    # Others are exported without a prediction.
    chosen = (*CURRENT, "current_libraries")
    results = frame(read_records(workspace)[0]).filter(*chosen, outcome="measured")
    hardware = detect_hardware(os.environ)
    parts = [select(results, hardware, model) for model in results["model"].unique().sort()]
    return pl.concat(parts or [results]).sort("step_seconds").to_dicts()


def compare(setting: dict[str, Any], steps: int, deadline: float) -> dict[str, Any] | None:
    """Train one setting; `None` where that failed or was not over in time."""
    label = method_of(setting).label
    with tempfile.TemporaryDirectory() as folder:
        arguments = Path(folder) / "arguments.json"
        run("to_training_arguments.py", "--output", arguments, *flags(setting))
        try:
            with gpus_alone(
                detect_hardware(os.environ),
                os.environ,
                patience_seconds=PATIENCE_SECONDS,
                on_wait=lambda text: print(text, file=sys.stderr),
            ):
                run(
                    *("training.py", "--output-dir", folder, "--model-type", setting["model"]),
                    *("--training-arguments", arguments, "--stop-after-steps", steps),
                    timeout=deadline - time.monotonic(),
                )
            speed = json.loads((Path(folder) / "speed.json").read_text())
        except (subprocess.SubprocessError, OSError, DeviceBusyError) as error:
            print(f"no comparison for {setting['model']} {label}: {error}", file=sys.stderr)
            return None
    predicted = speed["predicted"]
    if predicted is None:
        print(f"no prediction for {setting['model']} {label}", file=sys.stderr)
        return None
    row = {
        "model": setting["model"],
        "gpu_type": setting["gpu_type"],
        "gpus_per_node": setting["gpus_per_node"],
        "method": label,
        "micro_batch_size": setting["micro_batch_size"],
        "grad_acc_steps": setting["grad_acc_steps"],
        "timed_steps": speed["steps"],
        "predicted_step_seconds": predicted["step_seconds"],
        "actual_step_seconds": speed["step_seconds"],
        "step_error": predicted["step_seconds"] / speed["step_seconds"] - 1,
        "predicted_peak_gib": predicted["peak_bytes"] / 2**30,
        "actual_peak_gib": speed["peak_bytes"] / 2**30 if speed["peak_bytes"] else None,
        "peak_error": predicted["peak_bytes"] / speed["peak_bytes"] - 1
        if speed["peak_bytes"]
        else None,
        "compile": setting["compile"],
        "torch": setting["torch"],
    }
    print(f"{row['model']} {label}: {row['step_error']:+.2%}", file=sys.stderr)
    return row


def flags(setting: dict[str, Any]) -> list[str]:
    """Write a row as the flags of to_training_arguments.py."""
    words = []
    for flag in ("num_nodes", "gpus_per_node", "gpu_type", "model", "sharding", "micro_batch_size"):
        words += [f"--{flag.replace('_', '-')}", str(setting[flag])]
    words += ["--gradient-accumulation-steps", str(setting["grad_acc_steps"])]
    for flag in ("free_lunch", "activation_checkpointing", "offloading"):
        words += [f"--{flag.replace('_', '-')}"] if setting[flag] else []
    return words


def run(script: str, *words: object, timeout: float = float("inf")) -> None:
    """Run a script and, where it takes too long, end its whole process group.

    Its output goes to stderr, so that the table stands alone.
    """
    command = [sys.executable, SCRIPTS / script, *map(str, words)]
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        status = process.wait(None if math.isinf(timeout) else max(timeout, 0.0))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status:
        raise subprocess.CalledProcessError(status, command)


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table and what it comes to."""
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, fmt_str_lengths=60):
        print(
            pl.DataFrame(rows).select(
                "model",
                "method",
                "predicted_step_seconds",
                "actual_step_seconds",
                "step_error",
                "peak_error",
            )
        )
    errors = sorted(abs(row["step_error"]) for row in rows)
    print(f"{len(rows)} settings: median {statistics.median(errors):.2%}, worst {errors[-1]:.2%}")


if __name__ == "__main__":
    main()
