"""Measure which Trainer settings train a model fastest on given hardware."""

import contextlib
import functools
import os
import sys
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any, Literal

from _cli import (
    GpuNameOrNone,
    ModelNameOrNone,
    hardware_from,
    results,
    run,
    say,
    say_other_versions,
    terminal_width,
    workspace_dir,
)

from academic_pretraining.benchmarking.effort import QUICK, Effort
from academic_pretraining.benchmarking.scratch import any_begun
from academic_pretraining.config import TrainingConfig, grid, why_tolerance_invalid
from academic_pretraining.cores import usable_cores
from academic_pretraining.errors import InvalidConfigError, NoResultsError
from academic_pretraining.gpus import Hardware, check_hardware
from academic_pretraining.methods import Method, MethodSpace
from academic_pretraining.models import get_model
from academic_pretraining.occupancy import PATIENCE_SECONDS, gpus_alone
from experiments.identity import keys_that_do

Point = tuple[Method, tuple[str, ...]]


def main(
    num_nodes: int | None = None,
    gpus_per_node: int | None = None,
    gpu_type: GpuNameOrNone = None,
    model: ModelNameOrNone = None,
    methods: Literal["naive", "free-lunch", "all"] = "all",
    only: tuple[str, ...] = ("all",),
    cmd: Literal["run", "count", "print-incomplete", "print-results", "dry-run"] = "run",
    slurm: bool = False,
    batch_tolerance: float = 0.0,
    micro_batch_sizes: tuple[int, ...] | None = None,
    timing_seconds: float | None = None,
    detail: bool = False,
    allow_busy_gpus: bool = False,
) -> int:
    """Measure which Trainer settings train a model fastest on given hardware.

    Without hardware flags, this machine is detected, and of its grid only naive and free-lunch are
    measured. Results are kept in TANGO_WORKSPACE_DIR (tango_workspace/): the same command goes
    on where it was stopped, and a setting that has a result is not measured again. One measured
    with --micro-batch-sizes, --timing-seconds or --allow-busy-gpus stands in for it only until it
    has one without; beside that, it is shown where these flags are given.
    Scripts that measure or verify on the same GPU take turns: the later one waits, and says so.

    Args:
        num_nodes: machines.
        gpus_per_node: GPUs of each machine.
        gpu_type: kind of GPU; `cpu` for trying things out.
        model: what to train; pythia-14m where nothing says on what, else pythia-160m.
        methods: part of the grid to walk.
        only: of it these methods, named as --cmd dry-run does, such as "free-lunch + ZeRO-2".
        cmd: what to do with the grid.
        slurm: submit to SLURM instead of running here.
        batch_tolerance: allowed relative departure from the recipe's global batch.
        micro_batch_sizes: sizes to consider instead of all that divide the batch.
        timing_seconds: wished length of each timing run.
        detail: print also where the FLOPs and the time of a step go.
        allow_busy_gpus: measure even where somebody else computes, which changes the figures;
            the results say so.
    """
    if slurm:
        raise InvalidConfigError("--slurm is not available yet: run on the machine itself")
    if wrong := why_tolerance_invalid(batch_tolerance):
        raise InvalidConfigError(*wrong)
    if timing_seconds is not None and not 0 < timing_seconds < 3600:
        raise InvalidConfigError(
            f"--timing-seconds is {timing_seconds}, but must be above 0 and below 3600"
        )
    hardware = hardware_from(num_nodes, gpus_per_node, gpu_type)
    newcomer = (num_nodes, gpus_per_node, gpu_type) == (None, None, None)
    small = newcomer or hardware.gpu.is_cpu
    recipe = get_model(model or ("pythia-14m" if small else "pythia-160m"))
    points = list(grid(hardware, recipe, MethodSpace(methods), batch_tolerance=batch_tolerance))
    everything = only == ("all",)
    if not everything:
        points = _chosen(points, only)
    if first_look := newcomer and methods == "all" and everything:
        # Each setting takes a minute or two: two of them answer a first question.
        points = [point for point in points if point[0] in (Method(), Method(free_lunch=True))]
    configs = {
        method: TrainingConfig(
            hardware=hardware, recipe=recipe, method=method, batch_tolerance=batch_tolerance
        )
        for method, reasons in points
        if not reasons
    }
    if micro_batch_sizes is not None:
        micro_batch_sizes = tuple(sorted(set(micro_batch_sizes)))
        _check_micro_batches(micro_batch_sizes, list(configs.values()))
    if first_look:
        print(
            "a first look at naive and free-lunch; the whole grid: --gpu-type "
            f"{hardware.gpu_type} --gpus-per-node {hardware.gpus_per_node} --num-nodes 1",
            file=sys.stderr,
        )
    limits: dict[str, Any] = {"micro_batch_sizes": micro_batch_sizes} if micro_batch_sizes else {}
    if timing_seconds is not None:
        limits["timing_seconds"] = timing_seconds
    allow_busy = allow_busy_gpus and not hardware.gpu.is_cpu
    summary = f"{len(configs)} settings to measure, {len(points) - len(configs)} skipped"
    match cmd:
        case "count":
            print(summary)
        case "dry-run":
            from experiments.report import grid_lines

            print(*grid_lines(points, configs, micro_batch_sizes or ()), summary, sep="\n")
        case "print-results":
            whole = everything and methods == "all"
            asked = list(configs.values()) if limits or allow_busy else []
            also = keys_that_do(asked, limits, allow_busy=allow_busy)
            chosen = None if whole else [point[0] for point in points]
            _print_results(hardware, recipe.name, detail, also, chosen)
        case _ if not configs:
            # What bars every method; there is something, for naive breaks no rule of its own.
            raise InvalidConfigError(*(r for r in points[0][1] if all(r in p[1] for p in points)))
        case "print-incomplete":
            from experiments.workspace import incomplete

            wanted = list(configs.values())
            look = functools.partial(incomplete, limits=limits, allow_busy=allow_busy)
            missing = look(wanted, workspace_dir())
            other = len(missing) - len(look(missing, workspace_dir(), any_versions=True))
            elsewhere = f", {other} of them one of other library versions" if other else ""
            print(f"{len(missing)} of {len(configs)} settings have no result{elsewhere}")
            print(*(f"  {config.label}\n" for config in missing), sep="", end="")
        case "run":
            return _run(list(configs.values()), limits, detail, allow_busy)
    return 0


def _chosen(points: list[Point], labels: tuple[str, ...]) -> list[Point]:
    if not labels:
        raise InvalidConfigError("--only has no label: give some, or leave it out")
    known = {method.label: reasons for method, reasons in points}
    lower = {label.lower(): label for label in known}
    for label in labels:
        if label not in known:
            [near] = get_close_matches(label.lower(), lower, n=1) or [""]
            advice = f"did you mean {lower[near]!r}? " if near else ""
            raise InvalidConfigError(
                f"--only {label[:60]!r} is no method of this grid: {advice}--cmd dry-run lists "
                "them; put those with blanks in quotes"
            )
        if known[label]:
            raise InvalidConfigError(*(f"--only {label!r}: {why}" for why in known[label]))
    return [point for point in points if point[0].label in labels]


def _check_micro_batches(sizes: tuple[int, ...], configs: list[TrainingConfig]) -> None:
    if not sizes:
        raise InvalidConfigError("--micro-batch-sizes has no size: give some, or leave it out")
    if not configs:
        return
    hardware = configs[0].hardware
    if unknown := sorted(set(sizes) - {plan.micro_batch_size for plan in configs[0].plans()}):
        raise InvalidConfigError(
            f"--micro-batch-sizes {unknown[0]} does not divide the global batch of "
            f"{configs[0].global_batch_size} over {hardware.world_size} "
            f"GPU{'s' * (hardware.world_size > 1)}: --cmd dry-run shows plans"
        )


def _run(
    configs: list[TrainingConfig],
    limits: dict[str, Any],
    detail: bool,
    allow_busy: bool,
) -> int:
    hardware, recipe = configs[0].hardware, configs[0].recipe

    from experiments.report import Progress
    from experiments.workspace import incomplete

    progress = Progress()
    alone = functools.partial(
        gpus_alone, hardware, os.environ, allow_busy=allow_busy, on_wait=progress.waits
    )
    if incomplete(configs, workspace_dir(), limits, allow_busy=allow_busy):
        if hardware.num_nodes > 1 and "SLURM_JOB_ID" not in os.environ:
            raise InvalidConfigError(
                f"--num-nodes is {hardware.num_nodes}, but this is no SLURM job, which says where "
                "they are: run it in one, or give --num-nodes 1"
            )
        check_hardware(hardware, os.environ)
        # Refuses at once what would otherwise be refused setting by setting; where a script was
        # killed, its own processes are given the time to end.
        begun = any_begun(workspace_dir() / "sessions")
        with alone(patience_seconds=PATIENCE_SECONDS if begun else 0.0):
            pass
    from experiments.sweep import sweep

    # From now on it may be its own process of the setting before that is still ending.
    alone = functools.partial(alone, patience_seconds=PATIENCE_SECONDS)
    effort = (QUICK if hardware.gpu.is_cpu else Effort()).within(limits)
    # Loading libraries for the next setting takes about a core for each rank, and must be nothing
    # beside those that this one trains with.
    spare = usable_cores() >= 8 * hardware.gpus_per_node
    ahead = not hardware.gpu.is_cpu and hardware.num_nodes == 1 and spare
    end = sweep(
        configs,
        workspace_dir(),
        effort,
        progress,
        alone,
        limits,
        allow_busy=allow_busy,
        ahead=ahead,
    )
    recalled = len(end.records) - end.measured
    print(f"{end.measured} settings measured, {recalled} recalled", file=sys.stderr)
    also = keys_that_do(configs, limits, allow_busy=allow_busy)
    _print_results(hardware, recipe.name, detail, also)
    for label, error in end.failures.items():
        print(f"no result for {label}: {error}", file=sys.stderr)
    return 1 if end.failures else 0


def _print_results(
    hardware: Hardware,
    model: str,
    detail: bool,
    also: Collection[str],
    methods: list[Method] | None = None,
) -> None:
    """Print what is known of these methods, or of all; `also` is as for `frame`."""
    rows = results(hardware, model, also)
    if methods is not None and not rows.is_empty():
        from academic_pretraining.results import method_of

        rows = rows.filter([method_of(row) in methods for row in rows.iter_rows(named=True)])
    if rows.is_empty():
        chosen = "" if methods is None else " of these methods"
        print(f"no results yet{chosen} for {model} on this hardware in {workspace_dir()}")
        return
    from academic_pretraining.results import leaders
    from experiments.remarks import as_fast_as
    from experiments.tables import faster_with_limits, print_results

    print_results(rows, terminal_width(), detail=detail)
    # None of them may be one to choose.
    with contextlib.suppress(NoResultsError):
        say(*as_fast_as(leaders(rows, hardware, model)))
    say(*faster_with_limits(rows))
    say_other_versions(rows)


if __name__ == "__main__":
    run(main, stopped="what was measured is kept, run the same command to go on")
