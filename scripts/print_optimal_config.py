"""Print the fastest measured settings as one polars row."""

from typing import Literal

from _cli import GpuName, ModelName, results, run

from academic_pretraining.gpus import Hardware


def main(
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: GpuName,
    model: ModelName,
    numerics: Literal["any", "reference"] = "any",
) -> None:
    """Print the fastest measured settings as one polars row.

    Args:
        num_nodes: machines.
        gpus_per_node: GPUs of each machine.
        gpu_type: kind of GPU.
        model: what is trained.
        numerics: `reference` leaves out methods that compute something else than plain data
            parallelism does, such as ZeRO in half precision.
    """
    import polars as pl

    from academic_pretraining.results import fastest

    hardware = Hardware(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu_type=gpu_type)
    row = fastest(results(), hardware, model, same_numerics=numerics == "reference")
    with pl.Config(
        tbl_cols=-1, tbl_width_chars=-1, fmt_str_lengths=60, tbl_hide_dataframe_shape=True
    ):
        print(
            row.select(
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
        )


if __name__ == "__main__":
    run(main)
