import re

from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding

HARDWARE = ("--num-nodes", 1, "--gpus-per-node", 2, "--gpu-type", "a100")
ON_TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="a100")
SHARDED = Method(free_lunch=True, sharding=Sharding.ZERO_2, offloading=True)


def row(text: str) -> dict[str, str]:
    """Read polars' drawing of a frame with one row."""
    cells = [
        [cell.strip() for cell in re.split("[│┆]", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("│")
    ]
    names, *_, values = cells
    return dict(zip(names, values, strict=True))


def test_the_fastest_is_printed_whole(cli, remember, made_up):
    remember(
        made_up(ON_TWO, Method(), 3.0),
        made_up(ON_TWO, SHARDED, 2.0),
        made_up(ON_TWO, Method(free_lunch=True), 1.0, model="vit"),
        made_up(Hardware(num_nodes=2, gpus_per_node=1, gpu_type="a100"), Method(), 0.5),
    )
    answer = cli("print_optimal_config.py", *HARDWARE, "--model", "pythia-160m")
    assert (answer.status, answer.err) == (0, "")
    assert row(answer.out) == {
        "num_nodes": "1",
        "gpus_per_node": "2",
        "gpu_type": "a100",
        "model": "pythia-160m",
        "free_lunch": "true",
        "activation_checkpointing": "false",
        "sharding": "zero_2",
        "offloading": "true",
        "micro_batch_size": "8",
        "grad_acc_steps": "64",
        "training_days": "3.310185",
        "training_days_low": "3.236461",
        "training_days_high": "3.383909",
        "step_seconds": "2.0",
        "step_spread": "0.02",
        "mfu": "0.4",
        "ceiling_share": "0.32",
        "peak_memory_gib": "3.0",
        "compile": "on",
        "kernels": "none",
        "numerics": "fp16 parameters",
        "device_name": "NVIDIA H200",
    }


def test_the_winner_can_be_restricted_to_the_reference(cli, remember, made_up):
    remember(made_up(ON_TWO, Method(), 3.0), made_up(ON_TWO, SHARDED, 2.0))
    flags = (*HARDWARE, "--model", "pythia-160m", "--numerics", "reference")
    answer = cli("print_optimal_config.py", *flags)
    found = row(answer.out)
    assert (found["sharding"], found["numerics"]) == ("none", "reference")


def test_without_a_result_the_user_is_told_what_to_run(cli, remember, made_up):
    remember(made_up(ON_TWO, Method(), 3.0))
    assert cli.refuses("print_optimal_config.py", *HARDWARE, "--model", "vit") == (
        "no result yet for vit on 1 x 2 a100: run scripts/benchmark.py with the same flags first"
    )


def test_without_a_workspace_too(cli):
    assert cli.refuses("print_optimal_config.py", *HARDWARE, "--model", "pythia-160m") == (
        "no result yet for pythia-160m on 1 x 2 a100: run scripts/benchmark.py with the same "
        "flags first"
    )


def test_an_older_recipe_does_not_win(cli, remember, made_up):
    old = made_up(ON_TWO, SHARDED, 1.0, measured_at=2.0)
    old["config"]["recipe"]["learning_rate"] = 1.0
    remember(old, made_up(ON_TWO, SHARDED, 3.0))
    answer = cli("print_optimal_config.py", *HARDWARE, "--model", "pythia-160m")
    assert (answer.status, answer.err) == (0, "")
    assert row(answer.out)["step_seconds"] == "3.0"
