import re

import pytest

from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method

GPUS = ("--gpu-type", "a100", "--gpus-per-node")
CPU = ("--gpu-type", "cpu")
ON_TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="a100")

# Arguments and the whole message.
REFUSED = {
    "slurm": (
        (*GPUS, 2, "--slurm"),
        "--slurm is not available yet: run on the machine itself",
    ),
    "no GPU here": (
        (*GPUS, 2),
        "--gpu-type a100 --gpus-per-node 2 was given, but this machine has no GPU: "
        "give --gpu-type cpu",
    ),
    **{
        f"timing for {seconds} s": (
            (*CPU, "--timing-seconds", seconds),
            f"--timing-seconds is {float(seconds)}, but must be above 0 and below 3600",
        )
        for seconds in (0, -1, 3600, "nan", "inf")
    },
    **{
        f"micro-batch {size}": (
            (*CPU, "--micro-batch-sizes", size),
            f"--micro-batch-sizes {size} does not divide the global batch of 1024 over 1 GPUs: "
            "--cmd dry-run shows plans",
        )
        for size in (3, 0, -1, 2048)
    },
    "one micro-batch of three": (
        (*CPU, "--micro-batch-sizes", 1, 2, 5),
        "--micro-batch-sizes 5 does not divide the global batch of 1024 over 1 GPUs: "
        "--cmd dry-run shows plans",
    ),
    "three GPUs": (
        (*GPUS, 3, "--methods", "naive"),
        "a global batch of 1024 does not divide over 3 GPUs: the nearest that does is 1023; allow "
        "it with --batch-tolerance 0.001, or use a number of GPUs that divides 1024",
    ),
    "more GPUs than examples": (
        (*GPUS, 8, "--num-nodes", 200, "--methods", "free-lunch"),
        "1600 GPUs share a global batch of 1024, less than one example each: use at most 1024 GPUs",
    ),
    **{
        f"tolerance {tolerance}": (
            (*GPUS, 2, "--methods", "naive", "--batch-tolerance", tolerance),
            f"batch tolerance is {float(tolerance)}, but must be at least 0 and below 1: "
            "0.01 allows 1%",
        )
        for tolerance in (-0.1, 1, "nan", "inf")
    },
    "no bf16": (
        ("--gpu-type", "v100", "--model", "mamba", "--methods", "naive"),
        "mamba trains in bf16, which v100 lacks: use an Ampere GPU or newer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_in_a_line(cli, case):
    arguments, message = REFUSED[case]
    assert cli.refuses("benchmark.py", *arguments) == message


# A grid in which nothing is valid says so too, but with the reasons of its other points behind.
@pytest.mark.parametrize("case", ["three GPUs", "no bf16", *(k for k in REFUSED if "toler" in k)])
def test_the_whole_grid_is_refused_for_the_same_reason_first(cli, case):
    arguments, message = REFUSED[case]
    everything = [a if a != "naive" else "all" for a in arguments]
    assert cli.refuses("benchmark.py", *everything).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--methods", "fast"), "invalid choice 'fast' for argument '--methods'"),
        (("--cmd", "walk"), "invalid choice 'walk' for argument '--cmd'"),
        (("--batch-tolerance", "some"), "Error parsing --batch-tolerance"),
        (("--timing-seconds", "long"), "Error parsing --timing-seconds"),
        (("--micro-batch-sizes", "1", "x"), "Error parsing --micro-batch-sizes"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(cli, arguments, text):
    assert text in cli.cannot_parse("benchmark.py", *CPU, *arguments)


@pytest.mark.parametrize("command", ["run", "print-incomplete"])
def test_a_workspace_that_is_a_file_is_refused(cli, command):
    cli.workspace.write_text("mine")
    message = cli.refuses("benchmark.py", *CPU, "--cmd", command, torch=True)
    start = re.escape(f"the workspace {cli.workspace} cannot be used (")
    assert re.fullmatch(start + r".+\): name another folder with TANGO_WORKSPACE_DIR", message)


@pytest.mark.parametrize(
    ("arguments", "settings", "skipped"),
    [
        ((), 3, 22),
        (CPU, 3, 22),
        ((*GPUS, 1), 13, 12),
        ((*GPUS, 2), 23, 2),
        ((*GPUS, 2, "--methods", "naive"), 1, 0),
        ((*GPUS, 2, "--methods", "free-lunch"), 1, 0),
        ((*GPUS, 8, "--num-nodes", 4, "--model", "vit"), 23, 2),
        ((*GPUS, 3), 0, 25),
        ((*GPUS, 3, "--batch-tolerance", 0.001), 23, 2),
    ],
)
def test_counting_needs_neither_the_hardware_nor_torch(cli, arguments, settings, skipped):
    answer = cli("benchmark.py", *arguments, "--cmd", "count")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == f"{settings} settings to measure, {skipped} skipped\n"
    assert cli.files() == {cli.folder: None}


def test_a_dry_run_lists_the_grid_and_why_something_is_left_out(cli):
    answer = cli("benchmark.py", *GPUS, 1, "--model", "pythia-160m", "--cmd", "dry-run")
    assert (answer.status, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0] == (
        "run   naive: global batch 1024 = 1 GPU x micro-batch x accumulation, from 1 x 1024 to "
        "1024 x 1 (11 plans)"
    )
    assert (
        "skip  free-lunch + ZeRO-2: ZeRO-2 on 1 GPU divides nothing: use more GPUs or add "
        "offloading"
    ) in lines
    assert [line[:6] for line in lines].count("run   ") == 13
    assert [line[:6] for line in lines].count("skip  ") == 12
    assert lines[25:] == ["13 settings to measure, 12 skipped"]
    assert cli.files() == {cli.folder: None}


def test_results_are_printed_fastest_first(cli, remember, made_up):
    checkpointing = Method(free_lunch=True, activation_checkpointing=True)
    remember(
        made_up(ON_TWO, checkpointing, 3.0),
        made_up(ON_TWO, Method(free_lunch=True), 2.0),
        made_up(ON_TWO, Method(free_lunch=True), 9.0, model="vit"),
        made_up(Hardware(num_nodes=1, gpus_per_node=4, gpu_type="a100"), Method(), 0.5),
    )
    answer = cli("benchmark.py", *GPUS, 2, "--model", "pythia-160m", "--cmd", "print-results")
    assert (answer.status, answer.err) == (0, "")
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in answer.out.splitlines()
        if line.startswith("│")
    ]
    assert rows == [
        [
            *("pythia-160m", "2 x a100", method, "8 x 64", f"{step} s ± 2.0%", f"{days} days"),
            *(f"{rate} tok/s", "25.0%", "3.0 GiB", "on"),
        ]
        for method, step, days, rate in (
            ("free-lunch", 2, "3.3", "1,049,088"),
            ("free-lunch + checkpointing", 3, "5.0", "699,392"),
        )
    ]


def test_all_is_incomplete_in_a_new_workspace(cli):
    answer = cli(
        "benchmark.py", *GPUS, 2, "--methods", "naive", "--cmd", "print-incomplete", torch=True
    )
    assert answer.status == 0
    assert answer.out == ("1 of 1 settings have no result\n  pythia-160m on 2 x a100: naive\n")
