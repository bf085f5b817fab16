"""Print the fastest measured settings as one polars row."""

import datetime
from typing import TYPE_CHECKING, Any, Literal

from _cli import GpuName, ModelName, results, run, say, say_other_versions, terminal_width

from academic_pretraining.errors import InvalidConfigError, one_line
from academic_pretraining.gpus import Hardware
from academic_pretraining.schedule import Habits, Schedule, whole_run

if TYPE_CHECKING:
    import polars as pl

_SHOWN = (
    "num_nodes",
    "gpus_per_node",
    "gpu_type",
    "model",
    "free_lunch",
    "activation_checkpointing",
    "sharding",
    "offloading",
    "micro_batch_size",
    "grad_acc_steps",
    "training_days",
    "training_days_low",
    "training_days_high",
    "step_seconds",
    "step_spread",
    "mfu",
    "ceiling_share",
    "peak_memory_gib",
    "compile",
    "kernels",
    "numerics",
    "device_name",
)


def main(
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: GpuName,
    model: ModelName,
    numerics: Literal["any", "reference"] = "any",
    evaluate_every_steps: int | None = None,
    evaluation_examples: int | None = None,
    save_every_steps: int | None = None,
    save_seconds: float | None = None,
    time_limit_hours: float | None = None,
) -> None:
    """Print the fastest measured settings as one polars row.

    Where a terminal is too narrow for it, each column has a line.
    training_days is optimizer steps alone, with a 95% interval. With an interval of
    evaluations or checkpoints a second line adds them up and says on which date it is over.

    Args:
        num_nodes: machines.
        gpus_per_node: GPUs of each machine.
        gpu_type: kind of GPU.
        model: what is trained.
        numerics: `reference` leaves out methods that compute something else than plain data
            parallelism does, such as ZeRO in half precision.
        evaluate_every_steps: optimizer steps between evaluations.
        evaluation_examples: in each evaluation.
        save_every_steps: optimizer steps between checkpoints.
        save_seconds: of one checkpoint, instead of the measured ones.
        time_limit_hours: of one job; the next one goes on from the last checkpoint.
    """
    habits = Habits(
        evaluate_every_steps=evaluate_every_steps,
        evaluation_examples=evaluation_examples,
        save_every_steps=save_every_steps,
        time_limit_hours=time_limit_hours,
    )
    if save_seconds is not None and not 0 < save_seconds < 86_400:
        raise InvalidConfigError(
            f"--save-seconds is {save_seconds}, but must be above 0 and below 86400"
        )
    if save_seconds is not None and save_every_steps is None:
        raise InvalidConfigError(
            "--save-seconds is of checkpoints: give --save-every-steps with it"
        )

    from academic_pretraining.results import CURRENT, leaders
    from experiments.remarks import as_fast_as

    hardware = Hardware(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu_type=gpu_type)
    found = results(hardware, model)
    best = leaders(found, hardware, model, same_numerics=numerics == "reference")
    row = best.head(1)
    plan = None if habits == Habits() else _schedule(habits, row.row(0, named=True), save_seconds)
    others = found.filter(*CURRENT, outcome="measured", current_libraries=False)
    if not others.is_empty():
        say(f"{len(others)} results of other library versions are left out")
    say_other_versions(row)
    if limits := row["limits"].item():
        say(f"measured with {limits}")
    if company := row["company"].item():
        say(f"measured beside others on the GPUs: {company}")
    say(*as_fast_as(best))
    print(_drawn(row.select(*_SHOWN), terminal_width()))
    if plan:
        print(f"whole run: {plan.text}; begun now, over on {plan.end(datetime.datetime.now())}")


def _drawn(row: "pl.DataFrame", width: int | None) -> str:
    """Draw a row as polars does; where that is too wide, a line for each column."""
    import polars as pl

    with pl.Config(
        tbl_cols=-1, tbl_width_chars=-1, fmt_str_lengths=60, tbl_hide_dataframe_shape=True
    ):
        drawn = f"{row}"
    if width is None or len(drawn.splitlines()[0]) <= width:
        return drawn
    [values] = row.to_dicts()
    return "\n".join(f"{name:{max(map(len, values))}}  {_said(values[name])}" for name in values)


def _said(value: object) -> str:
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.6g}" if isinstance(value, float) else one_line(f"{value}")


def _schedule(habits: Habits, row: dict[str, Any], save_seconds: float | None) -> Schedule:
    return whole_run(
        habits,
        step_seconds=row["step_seconds"],
        max_steps=row["max_steps"],
        micro_step_seconds=row["micro_step_seconds"],
        examples_per_micro_step=row["global_batch_size"] // row["grad_acc_steps"],
        restart_seconds=row["restart_seconds"] or 0.0,
        save_seconds=row["save_seconds"] if save_seconds is None else save_seconds,
    )


if __name__ == "__main__":
    run(main)
