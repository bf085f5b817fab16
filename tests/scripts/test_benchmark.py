import re

import pytest

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import MODELS
from experiments.report import Progress
from experiments.sweep import sweep

GPUS = ("--gpu-type", "a100", "--gpus-per-node")
CPU = ("--gpu-type", "cpu")
ON_TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="a100")

# Arguments and the whole message.
REFUSED = {
    "slurm": (
        (*GPUS, 2, "--slurm"),
        "--slurm is not available yet: run on the machine itself",
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
            f"--micro-batch-sizes {size} does not divide the global batch of 1024 over 1 GPU: "
            "--cmd dry-run shows plans",
        )
        for size in (3, 0, -1, 2048)
    },
    "one micro-batch of three": (
        (*CPU, "--micro-batch-sizes", 1, 2, 5),
        "--micro-batch-sizes 5 does not divide the global batch of 1024 over 1 GPU: "
        "--cmd dry-run shows plans",
    ),
    "a micro-batch within a tolerance": (
        (*GPUS, 3, "--batch-tolerance", 0.001, "--micro-batch-sizes", 2),
        "--micro-batch-sizes 2 does not divide the global batch of 1023 over 3 GPUs: "
        "--cmd dry-run shows plans",
    ),
    "three GPUs": (
        (*GPUS, 3, "--methods", "naive"),
        "a global batch of 1024 does not divide over 3 GPUs: the nearest that does is 1023; allow "
        "it with --batch-tolerance 0.001, or use a number of GPUs that divides 1024",
    ),
    "a method that there is not": (
        (*GPUS, 2, "--only", "naive", "free-lunch + zero-2"),
        "--only 'free-lunch + zero-2' is no method of this grid: did you mean 'free-lunch + "
        "ZeRO-2'? --cmd dry-run lists them; put those with blanks in quotes",
    ),
    "a label without quotes": (
        (*GPUS, 2, "--only", "free-lunch", "+", "ZeRO-2"),
        "--only '+' is no method of this grid: --cmd dry-run lists them; put those with blanks in "
        "quotes",
    ),
    "a method that is None": (
        (*GPUS, 2, "--only", "None"),
        "--only 'None' is no method of this grid: --cmd dry-run lists them; put those with blanks "
        "in quotes",
    ),
    "a long label": (
        (*GPUS, 2, "--only", "x" * 5000),
        f"--only '{'x' * 60}' is no method of this grid: --cmd dry-run lists them; put those with "
        "blanks in quotes",
    ),
    "a method of another part of the grid": (
        (*GPUS, 2, "--methods", "naive", "--only", "free-lunch"),
        "--only 'free-lunch' is no method of this grid: --cmd dry-run lists them; put those with "
        "blanks in quotes",
    ),
    "a method that is not valid": (
        (*GPUS, 1, "--only", "free-lunch + ZeRO-2"),
        "--only 'free-lunch + ZeRO-2': ZeRO-2 on 1 GPU divides nothing: use more GPUs or add "
        "offloading",
    ),
    "no method": (
        (*GPUS, 2, "--only"),
        "--only has no label: give some, or leave it out",
    ),
    "two nodes that nothing names": (
        (*("--gpu-type", "cpu", "--model", "pythia-14m", "--methods", "naive"), "--num-nodes", 2),
        "--num-nodes is 2, but this is no SLURM job, which says where they are: run it in one, or "
        "give --num-nodes 1",
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


TOLERANCES = [case for case in REFUSED if case.startswith("tolerance")]


# Where nothing in a grid is valid, only what bars all of it is said.
@pytest.mark.parametrize("case", ["three GPUs", "more GPUs than examples", "no bf16", *TOLERANCES])
@pytest.mark.parametrize("command", ["run", "print-incomplete"])
def test_the_whole_grid_is_refused_for_the_same_reason(cli, case, command):
    arguments, message = REFUSED[case]
    everything = ["all" if a in ("naive", "free-lunch") else a for a in arguments]
    assert cli.refuses("benchmark.py", *everything, "--cmd", command) == message


@pytest.mark.parametrize("case", TOLERANCES)
@pytest.mark.parametrize("command", ["count", "dry-run", "print-results"])
def test_a_tolerance_is_checked_whatever_it_is_for(cli, case, command):
    arguments, message = REFUSED[case]
    assert cli.refuses("benchmark.py", *arguments, "--cmd", command) == message


NO_GPU = (
    "--gpu-type a100 --gpus-per-node 2 was given, but this machine has no GPU: run it on "
    "one that has, or try things out with --gpu-type cpu"
)


def test_nothing_is_measured_on_another_machine(cli):
    assert cli.refuses("benchmark.py", *GPUS, 2, "--methods", "naive") == NO_GPU


def test_what_was_measured_is_recalled_on_another_machine(cli, made_up, monkeypatch):
    monkeypatch.setattr("experiments.steps.measure", lambda *_, **__: None)
    monkeypatch.setattr(
        "experiments.steps.to_record", lambda *_, **__: made_up(ON_TWO, Method(), 2.0)
    )
    recipe = MODELS["pythia-160m"]
    config = TrainingConfig(hardware=ON_TWO, recipe=recipe, method=Method())
    assert sweep([config], cli.workspace, Effort(), Progress()).measured == 1
    naive = (*GPUS, 2, "--methods", "naive")
    answer = cli("benchmark.py", *naive, torch=True)
    assert (answer.status, answer.err) == (0, "0 settings measured, 1 recalled\n")
    assert answer.out.startswith("pythia-160m on 2 x a100, fastest first ")
    assert "│ naive  │   3.31 ± 0.08 │ 2 s ± 2.0% │                     8 x 64 │ " in answer.out
    incomplete = cli("benchmark.py", *naive, "--cmd", "print-incomplete")
    assert (incomplete.status, incomplete.out) == (0, "0 of 1 settings have no result\n")

    more = cli("benchmark.py", *GPUS, 2, "--methods", "all")
    assert (more.status, more.out, more.err) == (2, "", f"error: {NO_GPU}\n")


FIRST_LOOK = (
    "a first look at naive and free-lunch; the whole grid: --gpu-type {} --gpus-per-node {} "
    "--num-nodes 1\n"
)
UNKNOWN = "this machine has a 'GeForce 9', which no GPU type stands for: add a row to gpus.py"
MIXED = (
    "this machine has different GPUs (NVIDIA A100-SXM4-80GB, NVIDIA H200), which train at the pace "
    "of the slowest: choose equal ones with CUDA_VISIBLE_DEVICES"
)


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (["GeForce 9"], UNKNOWN),
        (["GeForce 9", "GeForce 9"], UNKNOWN),
        (["NVIDIA H200", "NVIDIA A100-SXM4-80GB"], MIXED),
    ],
)
def test_a_newcomer_with_an_unknown_gpu_tries_the_cpu(cli, see_gpus, names, warning):
    see_gpus(*names)
    answer = cli("benchmark.py", "--cmd", "count")
    assert answer.status == 0
    assert answer.err == (
        f"warning: {warning}; trying things out on the CPU\n" + FIRST_LOOK.format("cpu", 1)
    )
    assert answer.out == "2 settings to measure, 0 skipped\n"
    for flags in (("--num-nodes", 1), ("--gpus-per-node", 2)):
        assert cli.refuses("benchmark.py", *flags, "--cmd", "count") == warning
    known = cli("benchmark.py", "--gpu-type", "a100", "--gpus-per-node", 2, "--cmd", "count")
    assert (known.status, known.err) == (0, "")


@pytest.mark.parametrize(
    ("flags", "settings", "model"),
    [
        ((), 2, "pythia-14m"),
        (("--gpus-per-node", 2), 23, "pythia-160m"),
        (("--num-nodes", 1), 13, "pythia-160m"),
        (("--gpu-type", "h200"), 13, "pythia-160m"),
        (("--gpu-type", "cpu"), 3, "pythia-14m"),
    ],
)
def test_what_is_not_given_is_detected_and_a_newcomer_gets_a_small_model(
    cli, see_gpus, flags, settings, model
):
    see_gpus("NVIDIA H200", "NVIDIA H200")
    count = cli("benchmark.py", *flags, "--cmd", "count")
    assert (count.status, count.err) == (0, "" if flags else FIRST_LOOK.format("h200", 2))
    assert count.out.startswith(f"{settings} settings to measure")
    results = cli("benchmark.py", *flags, "--cmd", "print-results")
    assert results.out.startswith(f"no results yet for {model} on this hardware")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--methods", "fast"), "invalid choice 'fast' for argument '--methods'"),
        (("--cmd", "walk"), "invalid choice 'walk' for argument '--cmd'"),
        (("--batch-tolerance", "some"), "--batch-tolerance: "),
        (("--timing-seconds", "long"), "--timing-seconds: "),
        (("--micro-batch-sizes", "1", "x"), "--micro-batch-sizes: "),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(cli, arguments, text):
    assert text in cli.refuses("benchmark.py", *CPU, *arguments)


def test_a_workspace_that_is_a_file_is_refused(cli):
    cli.workspace.write_text("mine")
    message = cli.refuses("benchmark.py", *CPU, "--cmd", "run")
    assert message == (
        f"the workspace {cli.workspace} is a file: name a folder with TANGO_WORKSPACE_DIR"
    )


@pytest.mark.parametrize(
    ("arguments", "settings", "skipped"),
    [
        ((), 2, 0),
        (CPU, 3, 22),
        ((*GPUS, 1), 13, 12),
        ((*GPUS, 2), 23, 2),
        ((*GPUS, 2, "--methods", "naive"), 1, 0),
        ((*GPUS, 2, "--methods", "free-lunch"), 1, 0),
        ((*GPUS, 8, "--num-nodes", 4, "--model", "vit"), 23, 2),
        ((*GPUS, 2, "--only", "free-lunch + ZeRO-2", "naive"), 2, 0),
        ((*GPUS, 3), 0, 25),
        ((*GPUS, 3, "--batch-tolerance", 0.001), 23, 2),
    ],
)
def test_counting_needs_neither_the_hardware_nor_torch(cli, arguments, settings, skipped):
    answer = cli("benchmark.py", *arguments, "--cmd", "count")
    assert (answer.status, answer.err) == (0, "" if arguments else FIRST_LOOK.format("cpu", 1))
    assert answer.out == f"{settings} settings to measure, {skipped} skipped\n"
    assert cli.files() == {cli.folder: None}


def test_of_a_grid_only_the_methods_named_are_walked_in_its_order(cli):
    only = ("--only", "free-lunch + ZeRO-2", "naive", "naive")
    answer = cli("benchmark.py", *GPUS, 2, *only, "--cmd", "print-incomplete")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == (
        "2 of 2 settings have no result\n  pythia-160m on 2 x a100: naive\n"
        "  pythia-160m on 2 x a100: free-lunch + ZeRO-2\n"
    )


def test_a_newcomer_who_names_methods_gets_those(cli):
    only = ("--only", "free-lunch + checkpointing")
    answer = cli("benchmark.py", *only, "--cmd", "count")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == "1 settings to measure, 0 skipped\n"


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


@pytest.mark.parametrize(
    ("sizes", "plans"), [((8,), "8 x 64"), ((8, 2, 8), "from 2 x 256 to 8 x 64 (2 plans)")]
)
def test_a_dry_run_keeps_to_the_micro_batch_sizes_asked_for(cli, sizes, plans):
    command = (*GPUS, 2, "--methods", "naive", "--micro-batch-sizes", *sizes)
    assert cli("benchmark.py", *command, "--cmd", "dry-run").out.splitlines()[0] == (
        "run   naive: global batch 1024 = 2 GPUs x micro-batch x accumulation, " + plans
    )


def test_the_order_of_micro_batch_sizes_changes_nothing(cli, remember, made_up):
    remember(made_up(ON_TWO, Method(), 2.0, limits={"micro_batch_sizes": [1, 2]}))
    command = ("benchmark.py", *GPUS, 2, "--methods", "naive", "--cmd", "print-incomplete")
    for sizes, missing in (((1, 2), 0), ((2, 1), 0), ((2, 1, 2), 0), ((2,), 1)):
        answer = cli(*command, "--micro-batch-sizes", *sizes)
        assert answer.out.startswith(f"{missing} of 1 settings have no result\n")


@pytest.fixture
def measure_as(cli, monkeypatch):
    """Have naive measured as a record says."""

    def run(record):
        monkeypatch.setattr("experiments.steps.measure", lambda *_, **__: None)
        monkeypatch.setattr("experiments.steps.to_record", lambda *_, **__: record)
        config = TrainingConfig(hardware=ON_TWO, recipe=MODELS["pythia-160m"], method=Method())
        limits = record["limits"]
        assert sweep([config], cli.workspace, Effort(), Progress(), limits=limits).measured == 1

    return run


LIMITED = "naive (with --micro-batch-sizes)"


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (
            1.0,
            "naive: 1 s a step with --micro-batch-sizes, 2 s without, by which settings are "
            "chosen\n",
        ),
        (3.0, ""),
    ],
)
def test_what_a_run_measured_is_shown_beside_the_result_that_is_chosen_from(
    cli, made_up, measure_as, step, said
):
    measure_as(made_up(ON_TWO, Method(), 2.0))
    limits = {"micro_batch_sizes": [4]}
    measure_as(made_up(ON_TWO, Method(), step, micro_batch_size=4, limits=limits))
    command = ("benchmark.py", *GPUS, 2, "--methods", "naive")
    flags = ("--micro-batch-sizes", 4)
    recalled = "0 settings measured, 1 recalled\n"
    order = ["naive", LIMITED] if step > 2 else [LIMITED, "naive"]
    for answer, before in (
        (cli(*command, *flags, torch=True), recalled),
        (cli(*command, *flags, "--cmd", "print-results"), ""),
    ):
        assert (answer.status, answer.err) == (0, before + said)
        assert re.findall(r"^│ (\S.*?) +│", answer.out, re.MULTILINE) == order
    # Who did not ask for it does not see it.
    for answer, before in (
        (cli(*command, torch=True), recalled),
        (cli(*command, "--cmd", "print-results"), ""),
    ):
        assert (answer.status, answer.err) == (0, before)
        assert LIMITED not in answer.out
    optimal = cli("print_optimal_config.py", "--num-nodes", 1, *GPUS, 2, "--model", "pythia-160m")
    assert (optimal.status, optimal.err) == (0, "")
    assert "┆ 8                ┆ 64 " in optimal.out


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ((), ["naive", "free-lunch + checkpointing"]),
        (("--methods", "naive"), ["naive"]),
        (("--only", "free-lunch + checkpointing"), ["free-lunch + checkpointing"]),
        (("--only", "free-lunch + checkpointing", "free-lunch"), ["free-lunch + checkpointing"]),
        (("--only", "free-lunch"), []),
    ],
)
def test_of_the_results_only_those_of_the_methods_asked_for_are_printed(
    cli, remember, made_up, flags, shown
):
    checkpointing = Method(free_lunch=True, activation_checkpointing=True)
    remember(made_up(ON_TWO, Method(), 3.0), made_up(ON_TWO, checkpointing, 2.0))
    command = ("--model", "pythia-160m", "--cmd", "print-results", "--detail")
    answer = cli("benchmark.py", *GPUS, 2, *command, *flags)
    assert (answer.status, answer.err) == (0, "")
    for label in ("naive", "free-lunch + checkpointing"):
        # In both tables.
        assert answer.out.count(f"{label} ") == 2 * (label in shown)
    assert answer.out.startswith("no results yet of these methods") == (not shown)


def test_who_may_be_as_fast_as_the_fastest_is_said_below_the_results(cli, remember, made_up):
    checkpointing = Method(free_lunch=True, activation_checkpointing=True)
    remember(
        made_up(ON_TWO, Method(), 3.0),
        made_up(ON_TWO, checkpointing, 2.02),
        made_up(ON_TWO, Method(free_lunch=True), 2.0),
    )
    command = ("--model", "pythia-160m", "--cmd", "print-results")
    answer = cli("benchmark.py", *GPUS, 2, *command)
    assert (answer.status, answer.err) == (
        0,
        "free-lunch (3.0 GiB) is not told apart by its time from free-lunch + checkpointing "
        "(+1.0%, 3.0 GiB)\n",
    )
    assert cli("benchmark.py", *GPUS, 2, *command, "--only", "naive", "free-lunch").err == ""


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
            *(method, days, f"{step} s ± 2.0%", "8 x 64", "3.0 GiB", "40.0%", rate, "on"),
            "reference",
        ]
        for method, step, days, rate in (
            ("free-lunch", 2, "3.31 ± 0.08", "1,049,088"),
            ("free-lunch + checkpointing", 3, "5.0 ± 0.1", "699,392"),
        )
    ]


def test_on_a_narrow_terminal_no_figure_is_cut_off(cli, remember, made_up):
    checkpointing = Method(free_lunch=True, activation_checkpointing=True)
    remember(made_up(ON_TWO, checkpointing, 30.0), made_up(ON_TWO, Method(), 2000.0))
    command = (*GPUS, 2, "--model", "pythia-160m", "--cmd", "print-results", "--detail")
    status, text = cli.on_terminal(80, "benchmark.py", *command)
    assert status == 0
    lines = text.splitlines()
    assert max(map(len, lines)) == 80
    assert "…" not in text
    for figure in ("3,310.2 ± 66.2", "33 min 20 s ± 2.0%", "8 x 64", "3.0 GiB", "69,939", "5 s, "):
        assert f" {figure}" in text
    # Piped, each row is one line.
    piped = cli("benchmark.py", *command).out.splitlines()
    [row, _] = [line for line in piped if line.startswith("│ naive")]
    assert "│ 3,310.2 ± 66.2 │ 33 min 20 s ± 2.0% │" in row
    assert row.endswith(" reference │")


def test_all_is_incomplete_in_a_new_workspace(cli):
    answer = cli("benchmark.py", *GPUS, 2, "--methods", "naive", "--cmd", "print-incomplete")
    assert (answer.status, answer.err) == (0, "")
    assert cli.files() == {cli.folder: None}
    assert answer.out == ("1 of 1 settings have no result\n  pythia-160m on 2 x a100: naive\n")


def test_what_has_a_result_of_other_versions_is_counted(cli, remember, made_up):
    older = {"torch": "0.9"}
    checkpointing = Method(free_lunch=True, activation_checkpointing=True)
    limited = made_up(ON_TWO, checkpointing, 1.0, versions=older, limits={"timing_seconds": 1})
    remember(
        made_up(ON_TWO, Method(), 2.0),
        made_up(ON_TWO, Method(free_lunch=True), 1.0, versions=older),
        limited,
    )
    command = (*GPUS, 2, "--cmd", "print-incomplete")
    answer = cli("benchmark.py", *command)
    assert (answer.status, answer.err) == (0, "")
    first, *missing = answer.out.splitlines()
    assert first == "22 of 23 settings have no result, 1 of them one of other library versions"
    assert len(missing) == 22
