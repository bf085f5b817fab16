"""Seconds that the commands which do no work take to answer.

`python benchmarks/command_line.py [--results 3000] [--repeats 5]` prints the median of each; a
workspace with that many results is made up in a temporary folder.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from academic_pretraining.config import TrainingConfig, config_to_dict, grid
from academic_pretraining.gpus import GPUS, Hardware
from academic_pretraining.methods import MethodSpace
from academic_pretraining.models import MODELS
from academic_pretraining.records import Measurement, Timing
from experiments.identity import cache_key, library_versions

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
HARDWARE = ("--num-nodes", "1", "--gpus-per-node", "4", "--gpu-type", "a100")
MODEL = ("--model", "pythia-160m")
COMMANDS = {
    "benchmark --help": ("benchmark.py", "--help"),
    "print_optimal_config --help": ("print_optimal_config.py", "--help"),
    "to_training_arguments --help": ("to_training_arguments.py", "--help"),
    "training --help": ("training.py", "--help"),
    "benchmark --cmd count": ("benchmark.py", *HARDWARE, *MODEL, "--cmd", "count"),
    "benchmark --cmd dry-run": ("benchmark.py", *HARDWARE, *MODEL, "--cmd", "dry-run"),
    "benchmark --cmd print-results": ("benchmark.py", *HARDWARE, *MODEL, "--cmd", "print-results"),
    "print_optimal_config": ("print_optimal_config.py", *HARDWARE, *MODEL),
}


def main() -> None:
    """Make up results, time every command and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        count = make_workspace(Path(folder), options.results)
        environment = os.environ | {"TANGO_WORKSPACE_DIR": folder}
        print(f"{count} results, median of {options.repeats} runs")
        for name, command in COMMANDS.items():
            times = [seconds_of(command, environment) for _ in range(options.repeats)]
            print(f"{name:32} {statistics.median(times):6.2f} s")


def seconds_of(command: tuple[str, ...], environment: dict[str, str]) -> float:
    """Run a script and take its wall time."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, SCRIPTS / command[0], *command[1:]],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def make_workspace(folder: Path, count: int) -> int:
    """Write up to `count` made-up results over models, GPUs and methods; return how many."""
    written = 0
    for gpu in sorted(GPUS, key=lambda name: name != "a100"):
        for recipe in MODELS.values():
            for gpus in (1, 2, 4, 8):
                hardware = Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type=gpu)
                for method, reasons in grid(hardware, recipe, MethodSpace.ALL):
                    if reasons or written == count:
                        continue
                    config = TrainingConfig(hardware=hardware, recipe=recipe, method=method)
                    step = folder / "cache" / f"MeasureStep-001-{written}"
                    step.mkdir(parents=True)
                    (step / "data.json").write_text(json.dumps(made_up(config, written)))
                    (step / "cache-metadata.json").write_text("{}")
                    written += 1
    return written


def made_up(config: TrainingConfig, number: int) -> dict[str, Any]:
    """Fill a record of the real size with invented figures."""
    plan = config.plans()[0]
    timing = Timing(
        micro_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        global_batch_size=plan.global_batch_size,
        step_seconds=1.0 + number,
        step_seconds_standard_error=0.01,
        step_spread=0.01,
        micro_step_seconds=0.1,
        overhead_seconds=0.1,
        samples=((4, 1.0),) * 8,
        skipped_steps=0,
        peak_bytes=2**34,
        reserved_bytes=2**34,
        compiled=True,
        compiled_graphs=1,
        mfu=0.3,
        data_share=0.01,
        optimizer_share=0.02,
    )
    measurement = Measurement(
        outcome="measured",
        best=timing,
        timings=(timing,) * 3,
        memory_ramp=((1, 2**30), (4, 2**32), (8, 2**33)),
        compile="on",
        compile_error="",
        out_of_memory_micro_batch_size=None,
        out_of_memory_requested_bytes=None,
        out_of_memory_free_bytes=None,
        kernels="sdpa",
        model_flops_per_example=10**12,
        ceiling_flops=7e14,
        device_name="made up",
        device_bytes=2**37,
        seconds={"all": 60.0},
        sessions=1,
    )
    return {
        "version": 1,
        "config": config_to_dict(config),
        "measurement": dataclasses.asdict(measurement),
        "versions": library_versions(config),
        "measured_at": 1.7e9 + number,
        "key": cache_key(config),
        "limits": {},
    }


if __name__ == "__main__":
    main()
