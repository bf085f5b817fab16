"""Print the fastest measured settings as one polars row."""

from _cli import GpuName, ModelName, results, run

from academic_pretraining.gpus import Hardware


def main(num_nodes: int, gpus_per_node: int, gpu_type: GpuName, model: ModelName) -> None:
    """Print the fastest measured settings as one polars row.

    Args:
        num_nodes: machines.
        gpus_per_node: GPUs of each machine.
        gpu_type: kind of GPU.
        model: what is trained.
    """
    import polars as pl

    from academic_pretraining.results import fastest

    hardware = Hardware(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu_type=gpu_type)
    row = fastest(results(), hardware, model)
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
                "step_seconds",
                "step_spread",
                "mfu",
                "peak_memory_gib",
                "compile",
                "kernels",
                "device_name",
            )
        )


if __name__ == "__main__":
    run(main)
