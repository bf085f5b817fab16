"""Export settings as the JSON of TrainingArguments that scripts/training.py runs."""

import sys
from pathlib import Path
from typing import Literal

from _cli import GpuName, ModelName, ShardingName, is_given, records, run, say_other_versions

from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import InvalidConfigError, one_line
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import get_model

# What the measured winner says.
_CHOSEN = (
    *("--free-lunch", "--activation-checkpointing", "--sharding", "--offloading"),
    *("--micro-batch-size", "--gradient-accumulation-steps", "--batch-tolerance"),
)


def main(
    output: Path,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: GpuName,
    model: ModelName,
    free_lunch: bool = False,
    activation_checkpointing: bool = False,
    sharding: ShardingName = "none",
    offloading: bool = False,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    optimal: bool = False,
    numerics: Literal["any", "reference"] = "any",
    batch_tolerance: float = 0.0,
) -> None:
    """Export settings as the JSON of TrainingArguments that scripts/training.py runs.

    Beside F.json stands F.setting.json: what TrainingArguments cannot hold (model, attention
    kernel) and, where it was measured, the predicted step time and peak memory.

    Args:
        output: file to write.
        num_nodes: machines to train on.
        gpus_per_node: GPUs of each machine.
        gpu_type: kind of GPU.
        model: what is trained.
        free_lunch: compile, the model's own kernels, TF32.
        activation_checkpointing: recompute activations in the backward pass.
        sharding: how training state is divided over GPUs.
        offloading: keep what is sharded in host memory.
        micro_batch_size: examples a GPU takes at once.
        gradient_accumulation_steps: micro-batches of a GPU in one optimizer step.
        optimal: take the fastest measured settings instead of the flags above.
        numerics: with --optimal, `reference` leaves out methods that compute something else than
            plain data parallelism does, such as ZeRO in half precision.
        batch_tolerance: allowed relative departure from the recipe's global batch.
    """
    hardware = Hardware(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu_type=gpu_type)
    method = Method(
        free_lunch=free_lunch,
        activation_checkpointing=activation_checkpointing,
        sharding=Sharding(sharding),
        offloading=offloading,
    )
    if optimal and is_given(*_CHOSEN):
        raise InvalidConfigError(
            "--optimal takes the measured winner: leave the method and batch flags out"
        )
    if numerics != "any" and not optimal:
        raise InvalidConfigError(
            "--numerics restricts the measured winner: give --optimal with it, or leave it out"
        )
    recipe = get_model(model)
    from academic_pretraining.records import about
    from academic_pretraining.results import fastest, frame, method_of, of_method

    measured = winner = None
    if optimal:
        measured = about(records(), hardware, model)
        same = numerics == "reference"
        winner = fastest(frame(measured), hardware, model, same_numerics=same)
        row = winner.row(0, named=True)
        method = method_of(row)
        micro_batch_size, gradient_accumulation_steps = (
            row["micro_batch_size"],
            row["grad_acc_steps"],
        )
        batch_tolerance = abs(row["global_batch_size"] / recipe.global_batch_size - 1)
    if micro_batch_size is None or gradient_accumulation_steps is None:
        raise InvalidConfigError(
            "--micro-batch-size and --gradient-accumulation-steps are both needed: give them, "
            "or --optimal for the measured winner"
        )
    config = TrainingConfig(
        hardware=hardware, recipe=recipe, method=method, batch_tolerance=batch_tolerance
    )
    plan = config.plan(micro_batch_size, gradient_accumulation_steps)

    from experiments.export import export, read_json

    if measured is None:
        measured = about(records(), hardware, model)
    predicted = export(output, config, plan, measured)
    line = (
        f"{output}: {config.label}, micro-batch {plan.micro_batch_size} x accumulation "
        f"{plan.gradient_accumulation_steps}"
    )
    if predicted:
        line += f", predicted {predicted['step_seconds']:.4g} s a step"
        say_other_versions(of_method(frame(measured), method) if winner is None else winner)
    print(one_line(line))
    if config.compiles_layers_apart and read_json(output).get("torch_compile"):
        note = (
            f"{output} needs a model of scripts/training.py's build_model_for, which compiles the "
            "layers that are recomputed: others train slower"
        )
        print(one_line(note), file=sys.stderr)


if __name__ == "__main__":
    run(main)
