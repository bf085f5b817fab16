"""What all scripts have in common."""

import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import pytest

from academic_pretraining.gpus import GPUS, Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import MODELS

ON_A100 = ("--num-nodes", 1, "--gpus-per-node", 2, "--gpu-type", "a100", "--model", "pythia-160m")
# A valid command of each script, as far as its arguments go.
COMMANDS = {
    "benchmark.py": ON_A100,
    "print_optimal_config.py": ON_A100,
    "to_training_arguments.py": ("--output", "args.json", *ON_A100),
    "training.py": (
        *("--output-dir", "run", "--model-type", "vit", "--training-arguments", "args.json"),
    ),
}
PURPOSES = {
    "benchmark.py": "Measure which Trainer settings train a model fastest on given hardware.",
    "print_optimal_config.py": "Print the fastest measured settings as one polars row.",
    "to_training_arguments.py": (
        "Export settings as the JSON of TrainingArguments that scripts/training.py runs."
    ),
    "training.py": "Train a model with exported settings.",
}

every_script = pytest.mark.parametrize("script", COMMANDS)
with_hardware = pytest.mark.parametrize("script", list(COMMANDS)[:3])


def replaced(script: str, flag: str, value: object) -> list[object]:
    arguments = list(COMMANDS[script])
    arguments[arguments.index(flag) + 1] = value
    return arguments


@every_script
def test_help_says_what_it_is_for_and_needs_no_torch(cli, script):
    answer = cli(script, "--help")
    assert (answer.status, answer.err) == (0, "")
    assert PURPOSES[script] in answer.out
    for flag in COMMANDS[script][::2]:
        assert flag in answer.out
    assert cli.files() == {cli.folder: None}


@every_script
def test_help_that_nobody_can_read_is_said(cli, script):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            cli.command(script, "--help"),
            env=cli.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == (
        "error: standard output cannot be written (No space left on device): send it elsewhere\n"
    )


@every_script
@pytest.mark.parametrize(
    ("given", "named"),
    [(("--sharp", 1), "--sharp"), (("--sharp=1",), "--sharp=1"), (("-s",), "-s"), (("x",), "x")],
)
def test_an_unknown_flag_is_refused(cli, script, given, named):
    message = cli.refuses(script, *given, *COMMANDS[script])
    assert message == f"{named} is unknown here: --help lists the flags"


@pytest.mark.parametrize("script", list(COMMANDS)[1:])
def test_a_required_flag_that_is_misspelt_is_named(cli, script):
    flag, *rest = COMMANDS[script]
    assert cli.refuses(script, f"{flag}s", *rest) == (
        f"missing: {flag}; unknown: {flag}s {rest[0]}: --help lists the flags"
    )


def unknown_choice(flag: str, given: str, known: Iterable[str]) -> str:
    return (
        f"invalid choice '{given}' for argument '{flag}'. Expected one of "
        f"{tuple(known)}: --help lists the flags"
    )


# Where a flag may be left out, its default is no name for it.
@every_script
@pytest.mark.parametrize("given", ["gpt-5", "None"])
def test_an_unknown_model_is_answered_with_the_known_ones(cli, script, given):
    flag = "--model-type" if script == "training.py" else "--model"
    text = cli.refuses(script, *replaced(script, flag, given))
    assert text == unknown_choice(flag, given, MODELS)


@with_hardware
@pytest.mark.parametrize("given", ["h1oo", "None"])
def test_an_unknown_gpu_is_answered_with_the_known_ones(cli, script, given):
    text = cli.refuses(script, *replaced(script, "--gpu-type", given))
    assert text == unknown_choice("--gpu-type", given, GPUS)


@with_hardware
@pytest.mark.parametrize("flag", ["--num-nodes", "--gpus-per-node"])
@pytest.mark.parametrize("value", ["two", "1.5", ""])
def test_a_count_that_is_no_number_is_refused(cli, script, flag, value):
    text = cli.refuses(script, *replaced(script, flag, value))
    assert text.startswith(f"{flag}: ")


@with_hardware
@pytest.mark.parametrize("flag", ["--num-nodes", "--gpus-per-node"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_refused(cli, script, flag, value):
    message = cli.refuses(script, *replaced(script, flag, value))
    assert message == f"{flag} is {value}, but must be at least 1"


@pytest.mark.parametrize("script", list(COMMANDS)[1:])
def test_what_is_required_is_asked_for(cli, script):
    start, flags, end = cli.refuses(script).split(": ")
    assert (start, end) == ("missing", "--help lists the flags")
    assert set(flags.split(", ")) == set(COMMANDS[script][::2])


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("benchmark.py", (*ON_A100, "--cmd", "print-incomplete")),
        ("benchmark.py", (*ON_A100, "--cmd", "print-results")),
        ("print_optimal_config.py", ON_A100),
        ("to_training_arguments.py", ("--output", "args.json", *ON_A100, "--optimal")),
        (
            "to_training_arguments.py",
            (
                *("--output", "args.json", *ON_A100, "--micro-batch-size", 8),
                *("--gradient-accumulation-steps", 64),
            ),
        ),
    ],
)
def test_a_workspace_that_is_a_file_is_refused(cli, script, arguments):
    cli.workspace.write_text("mine")
    assert cli.refuses(script, *arguments) == (
        f"the workspace {cli.workspace} is a file: name a folder with TANGO_WORKSPACE_DIR"
    )


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_name_the_workspace_is_in_the_folder(cli, monkeypatch, value):
    environment = cli.environment()
    monkeypatch.setattr(cli, "environment", lambda torch=False: environment)
    environment.pop("TANGO_WORKSPACE_DIR")
    if value is not None:
        environment["TANGO_WORKSPACE_DIR"] = value
    answer = cli("benchmark.py", *ON_A100, "--cmd", "print-results")
    assert answer.out == "no results yet for pythia-160m on this hardware in tango_workspace\n"
    assert answer.status == 0
    assert cli.files() == {cli.folder: None}


READERS = {
    "print-results": ("benchmark.py", *ON_A100, "--cmd", "print-results"),
    "print_optimal_config": ("print_optimal_config.py", *ON_A100),
    "to_training_arguments": (
        *("to_training_arguments.py", "--output", "args.json", *ON_A100, "--optimal"),
    ),
    "to_training_arguments of flags": (
        *("to_training_arguments.py", "--output", "args.json", *ON_A100, "--free-lunch"),
        *("--micro-batch-size", 8, "--gradient-accumulation-steps", 64),
    ),
}
ON_TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="a100")


@pytest.mark.parametrize("reader", READERS)
def test_that_other_versions_are_installed_than_measured_with_is_said(
    cli, remember, made_up, reader
):
    older = {"torch": "0.9", "accelerate": "0.0"}
    naive = made_up(ON_TWO, Method(), 3.0, versions=older)
    remember(naive, made_up(ON_TWO, Method(free_lunch=True), 2.0, versions=older))
    answer = cli(*READERS[reader])
    assert answer.status == 0
    assert answer.err == (
        "measured with torch 0.9, accelerate 0.0; here is torch "
        f"{version('torch')}, accelerate {version('accelerate')}\n"
    )


@pytest.mark.parametrize(
    ("reader", "flags"),
    [
        ("print_optimal_config", ("--save-every-steps", 1000, "--time-limit-hours", 1e-9)),
        ("to_training_arguments", ("--output", ".")),
    ],
)
def test_what_is_refused_is_one_line_even_so(cli, remember, made_up, reader, flags):
    remember(made_up(ON_TWO, Method(), 3.0, versions={"torch": "0.9"}))
    script, *arguments = [a for a in READERS[reader] if a not in ("--output", "args.json")]
    cli.refuses(script, *arguments, *flags)


def test_of_results_with_the_versions_installed_nothing_is_said(cli, remember, made_up):
    # The older one is marked.
    older = made_up(ON_TWO, Method(), 1.0, versions={"torch": "0.9"}, measured_at=0.5)
    remember(older, made_up(ON_TWO, Method(free_lunch=True), 2.0))
    answer = cli(*READERS["print-results"])
    assert (answer.status, answer.err) == (0, "")
    assert "│ naive (torch 0.9) │" in answer.out


def test_a_result_that_cannot_be_read_is_named_and_left_out(cli, remember):
    remember({"version": 99})
    data = cli.workspace / "cache" / "MeasureStep-001-0" / "data.json"
    answer = cli("benchmark.py", *ON_A100, "--cmd", "print-results")
    assert answer.status == 0
    assert answer.err == (f"warning: {data} is left out: record version 99, but 1 is read here\n")
    assert answer.out == (f"no results yet for pythia-160m on this hardware in {cli.workspace}\n")
