import re

import pytest

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
        "training_days_low": "3.225589",
        "training_days_high": "3.394782",
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


def test_on_a_narrow_terminal_each_column_has_a_line(cli, remember, made_up):
    remember(made_up(ON_TWO, SHARDED, 2.0))
    command = ("print_optimal_config.py", *HARDWARE, "--model", "pythia-160m")
    piped = row(cli(*command).out)
    status, text = cli.on_terminal(80, *command)
    assert status == 0
    seen = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert list(seen) == list(piped)
    assert seen == piped | {
        "training_days": "3.31019",
        "training_days_low": "3.22559",
        "training_days_high": "3.39478",
        "step_seconds": "2",
        "peak_memory_gib": "3",
    }
    status, wide = cli.on_terminal(400, *command)
    assert (status, row(wide)) == (0, piped)


def test_the_winner_can_be_restricted_to_the_reference(cli, remember, made_up):
    remember(made_up(ON_TWO, Method(), 3.0), made_up(ON_TWO, SHARDED, 2.0))
    flags = (*HARDWARE, "--model", "pythia-160m", "--numerics", "reference")
    answer = cli("print_optimal_config.py", *flags)
    found = row(answer.out)
    assert (found["sharding"], found["numerics"]) == ("none", "reference")


def test_who_may_be_as_fast_is_said_beside_it(cli, remember, made_up):
    remember(made_up(ON_TWO, Method(), 2.02), made_up(ON_TWO, SHARDED, 2.0))
    answer = cli("print_optimal_config.py", *HARDWARE, "--model", "pythia-160m")
    assert row(answer.out)["sharding"] == "zero_2"
    assert answer.err == (
        "free-lunch + ZeRO-2 + offloading (3.0 GiB) is not told apart by its time from naive "
        "(+1.0%, 3.0 GiB)\n"
    )


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


RUN = ("print_optimal_config.py", *HARDWARE, "--model", "pythia-160m")


def test_a_whole_run_ends_on_a_date(cli, remember, made_up):
    remember(made_up(ON_TWO, SHARDED, 2.0))
    flags = ("--save-every-steps", 1000, "--time-limit-hours", 24)
    answer = cli(*RUN, *flags, "--evaluate-every-steps", 1000, "--evaluation-examples", 10_000)
    assert answer.status == 0
    [line] = answer.out.splitlines()[-1:]
    # 143 evaluations of 625 micro-batches of 0.07 s, a third each; 143 checkpoints of 5 s. A job
    # of 24 h holds 42 times 1000 steps with theirs, 2020 s, and loses the rest.
    assert re.fullmatch(
        r"whole run: 3\.4 days in 4 jobs: steps 3\.31, evaluation 0\.0241, checkpoints 0\.00828, "
        r"launching 0\.00203, repeated steps 0\.0533; begun now, over on \d{4}-\d\d-\d\d",
        line,
    )


def test_measured_checkpoints_can_be_overruled(cli, remember, made_up):
    remember(made_up(ON_TWO, SHARDED, 2.0))
    answer = cli(*RUN, "--save-every-steps", 1000, "--save-seconds", 600)
    assert "checkpoints 0.993" in answer.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--save-seconds", 0), "--save-seconds is 0.0, but must be above 0 and below 86400"),
        (("--time-limit-hours", 5), "under a time limit a training goes on from checkpoints"),
        (
            ("--save-every-steps", 10**9, "--time-limit-hours", 5),
            "ends before its first checkpoint",
        ),
        (("--evaluation-examples", 10), "evaluation needs both its interval and its size"),
        (
            ("--save-seconds", 5),
            "--save-seconds is of checkpoints: give --save-every-steps",
        ),
        (("--save-every-steps", 10**400), "but must be above 0 and below 1e+12"),
        (("--save-every-steps", -1), "save_every_steps is -1, but must be above 0"),
    ],
    ids=str,
)
def test_habits_that_make_no_sense_are_refused(cli, remember, made_up, flags, why):
    remember(made_up(ON_TWO, SHARDED, 2.0))
    assert why in cli.refuses(*RUN, *flags)
