"""Measure which Trainer settings train a model fastest on given hardware."""

import os
import sys
from typing import Literal

from _cli import GpuName, ModelName, results, run, workspace_dir
from rich.console import Console

from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.errors import InvalidConfigError
from academic_pretraining.gpus import Hardware, check_hardware, detect_hardware
from academic_pretraining.methods import MethodSpace
from academic_pretraining.models import get_model


def main(
    num_nodes: int | None = None,
    gpus_per_node: int | None = None,
    gpu_type: GpuName | None = None,
    model: ModelName | None = None,
    methods: Literal["naive", "free-lunch", "all"] = "all",
    cmd: Literal["run", "count", "print-incomplete", "print-results", "dry-run"] = "run",
    slurm: bool = False,
    batch_tolerance: float = 0.0,
    micro_batch_sizes: tuple[int, ...] = (),
    timing_seconds: float | None = None,
) -> int:
    """Measure which Trainer settings train a model fastest on given hardware.

    Without hardware flags, this machine is detected; results are kept in TANGO_WORKSPACE_DIR
    (tango_workspace/), and the same command goes on where it was stopped.

    Args:
        num_nodes: machines.
        gpus_per_node: GPUs of each machine.
        gpu_type: kind of GPU; `cpu` for trying things out.
        model: what to train; pythia-160m on a detected GPU, pythia-14m on a CPU.
        methods: part of the grid to walk.
        cmd: what to do with the grid.
        slurm: submit to SLURM instead of running here.
        batch_tolerance: allowed relative departure from the recipe's global batch.
        micro_batch_sizes: sizes to consider instead of all that divide the batch.
        timing_seconds: wished length of each timing run.
    """
    if slurm:
        raise InvalidConfigError("--slurm is not available yet: run on the machine itself")
    hardware = _hardware(num_nodes, gpus_per_node, gpu_type)
    recipe = get_model(model or ("pythia-14m" if hardware.gpu.is_cpu else "pythia-160m"))
    points = list(grid(hardware, recipe, MethodSpace(methods), batch_tolerance=batch_tolerance))
    configs = [
        TrainingConfig(
            hardware=hardware, recipe=recipe, method=method, batch_tolerance=batch_tolerance
        )
        for method, reasons in points
        if not reasons
    ]
    match cmd:
        case "count":
            print(f"{len(configs)} settings to measure, {len(points) - len(configs)} skipped")
        case "dry-run":
            _print_grid(points, configs)
        case "print-results":
            _print_results(hardware, recipe.name)
        case _ if not configs:
            raise InvalidConfigError(*dict.fromkeys(r for _, reasons in points for r in reasons))
        case "print-incomplete":
            from experiments.sweep import incomplete

            missing = incomplete(configs, workspace_dir())
            print(f"{len(missing)} of {len(configs)} settings have no result")
            for config in missing:
                print(f"  {config.label}")
        case "run":
            return _run(configs, micro_batch_sizes, timing_seconds)
    return 0


def _hardware(num_nodes: int | None, gpus_per_node: int | None, gpu_type: str | None) -> Hardware:
    given = (num_nodes, gpus_per_node, gpu_type)
    if all(value is None for value in given):
        return detect_hardware(os.environ)
    if gpu_type is None:
        gpu_type = detect_hardware(os.environ).gpu_type
    return Hardware(
        num_nodes=1 if num_nodes is None else num_nodes,
        gpus_per_node=1 if gpus_per_node is None else gpus_per_node,
        gpu_type=gpu_type,
    )


def _run(
    configs: list[TrainingConfig],
    micro_batch_sizes: tuple[int, ...],
    timing_seconds: float | None,
) -> int:
    import dataclasses

    from _display import Progress

    from academic_pretraining.benchmarking.search import QUICK, Effort
    from experiments.sweep import sweep

    hardware = configs[0].hardware
    check_hardware(hardware, os.environ)
    effort = QUICK if hardware.gpu.is_cpu else Effort()
    if micro_batch_sizes:
        effort = dataclasses.replace(effort, micro_batch_sizes=micro_batch_sizes)
    if timing_seconds is not None:
        effort = dataclasses.replace(effort, timing_seconds=timing_seconds)
    end = sweep(configs, workspace_dir(), effort, Progress())
    cached = len(end.records) - end.measured
    print(f"{end.measured} settings measured, {cached} recalled", file=sys.stderr)
    _print_results(hardware, configs[0].recipe.name)
    for label, error in end.failures.items():
        print(f"no result for {label}: {error}", file=sys.stderr)
    return 1 if end.failures else 0


def _print_grid(points, configs: list[TrainingConfig]) -> None:
    by_method = {config.method: config for config in configs}
    for method, reasons in points:
        if reasons:
            print(f"skip  {method.label}: {'; '.join(reasons)}")
            continue
        plans = by_method[method].plans()
        largest, smallest = plans[-1], plans[0]
        print(
            f"run   {method.label}: global batch {smallest.global_batch_size} = "
            f"{smallest.world_size} GPUs x micro-batch x accumulation, from 1 x "
            f"{smallest.gradient_accumulation_steps} to {largest.micro_batch_size} x "
            f"{largest.gradient_accumulation_steps} ({len(plans)} plans)"
        )
    print(f"{len(configs)} settings to measure, {len(points) - len(configs)} skipped")


def _print_results(hardware: Hardware, model: str) -> None:
    from _display import results_table

    from academic_pretraining.results import select

    rows = select(results(), hardware, model)
    console = Console(width=None if sys.stdout.isatty() else 180)
    if rows.is_empty():
        console.print(f"no results yet for {model} on this hardware in {workspace_dir()}")
    else:
        console.print(results_table(rows))


if __name__ == "__main__":
    run(main)
