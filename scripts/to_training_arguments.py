"""Export settings as the JSON of TrainingArguments that scripts/training.py runs."""

import json
from pathlib import Path

from _cli import GpuName, ModelName, results, run, workspace_dir
from tyro.extras import literal_type_from_choices as choices

from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import InvalidConfigError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import get_model
from academic_pretraining.training_arguments import to_json, training_arguments_fields

ShardingName = choices([sharding.value for sharding in Sharding])


def main(
    output: Path,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: GpuName,
    model: ModelName,
    free_lunch: bool = False,
    activation_checkpointing: bool = False,
    sharding: ShardingName = "none",  # pyright: ignore[reportInvalidTypeForm]
    offloading: bool = False,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    optimal: bool = False,
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
        batch_tolerance: allowed relative departure from the recipe's global batch.
    """
    hardware = Hardware(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu_type=gpu_type)
    method = Method(
        free_lunch=free_lunch,
        activation_checkpointing=activation_checkpointing,
        sharding=Sharding(sharding),
        offloading=offloading,
    )
    batch = (micro_batch_size, gradient_accumulation_steps)
    if optimal and (method != Method() or batch != (None, None)):
        raise InvalidConfigError(
            "--optimal takes the measured winner: leave the method and batch flags out"
        )
    if not optimal and None in batch:
        raise InvalidConfigError(
            "--micro-batch-size and --gradient-accumulation-steps are both needed: give them, "
            "or --optimal for the measured winner"
        )
    row = None
    if optimal:
        from academic_pretraining.results import fastest

        row = fastest(results(), hardware, model).row(0, named=True)
        method = Method(
            **{
                name: row[name] for name in ("free_lunch", "activation_checkpointing", "offloading")
            },
            sharding=Sharding(row["sharding"]),
        )
        batch = (row["micro_batch_size"], row["grad_acc_steps"])
        wanted = get_model(model).global_batch_size
        batch_tolerance = abs(row["global_batch_size"] - wanted) / wanted
    config = TrainingConfig(
        hardware=hardware,
        recipe=get_model(model),
        method=method,
        batch_tolerance=batch_tolerance,
    )
    plan = config.plan(*batch)  # pyright: ignore[reportArgumentType]
    prediction = _prediction(config, batch)
    # A compilation that failed when it was measured is not asked for in training.
    failed = prediction is not None and prediction["compile"] == "failed"
    fields = training_arguments_fields(config, plan, torch_compile=False if failed else None)
    setting = {
        "model": config.recipe.name,
        "attention": config.attention,
        "hardware": {"num_nodes": num_nodes, "gpus_per_node": gpus_per_node, "gpu_type": gpu_type},
        "method": method.label,
        "prediction": prediction,
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(to_json(fields))
        output.with_suffix(".setting.json").write_text(to_json(setting))
    except OSError as error:
        raise InvalidConfigError(
            f"{output} cannot be written ({error}): name another file"
        ) from error
    print(f"{output}: {config.label}, micro-batch {batch[0]} x accumulation {batch[1]}")


def _prediction(config: TrainingConfig, batch: tuple[int | None, int | None]) -> dict | None:
    """Find what was measured for exactly these settings; `None` if nothing was."""
    from experiments.workspace import read_records

    found = None
    newest = -1.0
    for record in read_records(workspace_dir())[0]:
        stored = record["config"]
        same = (
            stored["hardware"] == json.loads(json.dumps(vars(config.hardware)))
            and stored["recipe"]["name"] == config.recipe.name
            and stored["method"] == vars(config.method)
        )
        if not same or record["measured_at"] < newest:
            continue
        for timing in record["measurement"]["timings"]:
            if (timing["micro_batch_size"], timing["gradient_accumulation_steps"]) == batch:
                newest = record["measured_at"]
                found = {
                    name: timing[name]
                    for name in ("step_seconds", "step_seconds_standard_error", "peak_bytes", "mfu")
                }
                found["compile"] = record["measurement"]["compile"]
    return found


if __name__ == "__main__":
    run(main)
