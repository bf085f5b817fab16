"""Command lines that make no sense: each is refused in one line, and nothing happens."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import BATCH, COMMANDS, MODEL, TARGET, Accepted, InProcess, furnished, spoilt

from academic_pretraining.gpus import GPUS
from academic_pretraining.methods import MethodSpace, Sharding, method_space
from academic_pretraining.models import MODELS

many = settings(max_examples=150)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> InProcess:
    return furnished(tmp_path_factory.mktemp("bad-flags"))


@pytest.mark.parametrize("script", COMMANDS)
def test_the_commands_that_are_spoilt_below_are_good(tmp_path, script):
    place = furnished(tmp_path)
    try:
        status, _, err = place.run(script, *COMMANDS[script])
    except Accepted:
        assert script in ("training.py", "verify.py")
        return
    assert (status, err) == (0, "")
    assert script not in ("training.py", "verify.py")


# None of these letters spell None, nan, inf or a number.
letters = "abcdefghjklmopqrstuvwxyzABCDXYZ_.:;,!?$%&/()[]{}<>|~^'\" \t"
words = st.text(letters, min_size=1, max_size=12)
too_many = st.integers(10**13, 10**60).map(str) | st.sampled_from(
    ["9" * digits for digits in (4300, 4301, 20_000)]
)
below_one = st.integers(-(10**30), 0).map(str)
no_whole_number = words | st.floats().map(repr)


def outside(low: float, high: float, *, low_is_in: bool = False) -> st.SearchStrategy[str]:
    """Numbers that are not between two, which are outside themselves, and what is no number."""
    below = st.floats(max_value=low, exclude_max=low_is_in)
    return words | (below | st.floats(min_value=high) | st.just(float("nan"))).map(repr)


def names_but(*known: str) -> st.SearchStrategy[str]:
    """Misspelt choices and other words."""
    misspelt = st.sampled_from(known).flatmap(
        lambda name: st.sampled_from(
            [f"{name}x", f"{name[:-1]}~", f"{name.upper()}?", f" {name}", f"{name} ", name * 2]
        )
    )
    return words.filter(lambda word: word not in known) | misspelt


COUNT = no_whole_number | below_one | too_many
HARDWARE = {
    "--num-nodes": COUNT,
    "--gpus-per-node": COUNT,
    "--gpu-type": names_but(*GPUS),
}
LAUNCHER = {
    "--launcher.workers-per-host": COUNT,
    "--launcher.worker-timeout": COUNT,
    "--launcher.agent-timeout": COUNT,
    # Hypothesis takes words from the code that is loaded, "gloo" among them.
    "--launcher.backend": words.map(lambda word: f"{word}?"),
    "--launcher.env-file": words,
    "--launcher.ssh-config-file": words,
    "--launcher.hostnames": st.sampled_from(["slurm", ""]),
}
TOLERANCE = outside(0, 1, low_is_in=True)
SHARE = outside(0, 1)
BAD: dict[str, dict[str, st.SearchStrategy[str]]] = {
    "benchmark.py": {
        **HARDWARE,
        "--model": names_but(*MODELS),
        "--methods": names_but("naive", "free-lunch", "all"),
        "--cmd": names_but("run", "count", "print-incomplete", "print-results", "dry-run"),
        "--batch-tolerance": TOLERANCE,
        "--timing-seconds": outside(0, 3600),
        "--micro-batch-sizes": COUNT,
        "--only": names_but(*(method.label for method in method_space(MethodSpace.ALL)), "all"),
        "--slurm": words,
        "--detail": words,
        "--allow-busy-gpus": words,
    },
    "print_optimal_config.py": {
        **HARDWARE,
        "--model": names_but(*MODELS),
        "--numerics": names_but("any", "reference"),
        "--evaluate-every-steps": COUNT,
        "--evaluation-examples": COUNT,
        "--save-every-steps": COUNT,
        "--save-seconds": outside(0, 86_400),
        "--time-limit-hours": outside(0, 1e12),
    },
    "to_training_arguments.py": {
        **HARDWARE,
        "--model": names_but(*MODELS),
        "--sharding": names_but(*Sharding),
        "--micro-batch-size": COUNT,
        "--gradient-accumulation-steps": COUNT,
        "--numerics": names_but("any", "reference"),
        "--batch-tolerance": TOLERANCE,
        "--free-lunch": words,
        "--activation-checkpointing": words,
        "--offloading": words,
        "--optimal": words,
    },
    "training.py": {
        **LAUNCHER,
        "--model-type": names_but(*MODELS),
        "--stop-after-steps": no_whole_number | below_one,
        "--training-arguments": words,
        "--resume": words,
    },
    "verify.py": {
        **LAUNCHER,
        "--steps": no_whole_number | st.integers(-(10**30), 2).map(str),
        "--limit-seconds": outside(0, 86_400),
        "--tolerance": SHARE,
        "--memory-tolerance": SHARE,
        "--training-arguments": words,
        "--allow-busy-gpus": words,
    },
}


# What a flag needs beside it, so that its own value is all that is wrong.
NEEDED = {
    "--evaluate-every-steps": ("--evaluation-examples", "5"),
    "--evaluation-examples": ("--evaluate-every-steps", "5"),
    "--save-seconds": ("--save-every-steps", "1000"),
    "--time-limit-hours": ("--save-every-steps", "1000"),
}


@pytest.mark.parametrize("script", BAD)
@many
@given(data=st.data())
def test_a_value_that_a_flag_cannot_have_is_refused(place, script, data):
    flag = data.draw(st.sampled_from(sorted(BAD[script])))
    value = data.draw(BAD[script][flag])
    arguments = [*spoilt(script, flag), *NEEDED.get(flag, ()), flag, value]
    if data.draw(st.booleans()):
        arguments = [*arguments[:-2], f"{flag}={value}"]
    place.refuses(script, *arguments)


@pytest.mark.parametrize("script", COMMANDS)
@settings(many, max_examples=25)
@given(name=st.from_regex(r"--?zz[a-z-]{0,10}", fullmatch=True), value=st.none() | words)
def test_a_flag_that_there_is_not_is_refused(place, script, name, value):
    place.refuses(script, *COMMANDS[script], name, *([] if value is None else [value]))


@pytest.mark.parametrize("script", COMMANDS)
@settings(many, max_examples=15)
@given(value=words.filter(lambda word: word.strip()))
def test_what_belongs_to_no_flag_is_refused(place, script, value):
    place.refuses(script, value, *COMMANDS[script])


def cut() -> Iterator[tuple[str, list[str]]]:
    for script, command in COMMANDS.items():
        for at in range(0, len(command), 2):
            rest = [*command[:at], *command[at + 2 :]]
            yield script, [*rest, command[at]]
            if script != "benchmark.py" and command[at] not in BATCH[2:]:
                yield script, rest
        for at in range(1, len(command), 2):
            yield script, list(command[:at])


CUT = list(cut())


@pytest.mark.parametrize(("script", "arguments"), CUT, ids=str)
def test_a_flag_or_a_value_that_lacks_is_asked_for(place, script, arguments):
    place.refuses(script, *arguments)


REPEATED = [
    *((script, flag) for script, command in COMMANDS.items() for flag in command[::2]),
    *((script, "--launcher.agent-timeout") for script in ("training.py", "verify.py")),
]


@pytest.mark.parametrize(("script", "flag"), REPEATED)
@pytest.mark.parametrize("way", ["{} {}", "{}={}"])
def test_a_flag_given_twice_is_refused(place, script, flag, way):
    command = [*COMMANDS[script], "--launcher.agent-timeout", "9"]
    value = command[command.index(flag) + 1]
    first = COMMANDS[script] if flag in COMMANDS[script] else command
    again = way.format(flag.replace("-", "_").replace("__", "--"), value).split()
    assert place.refuses(script, *first, *again) == f"error: {flag} is given twice: give it once\n"


# Switches and their opposites.
@pytest.mark.parametrize(
    ("script", "switch"),
    [
        *(("benchmark.py", name) for name in ("detail", "allow-busy-gpus", "slurm")),
        *(("to_training_arguments.py", name) for name in ("optimal", "free-lunch", "offloading")),
        *(("to_training_arguments.py", "activation-checkpointing"), ("training.py", "resume")),
        ("verify.py", "allow-busy-gpus"),
    ],
)
@pytest.mark.parametrize("way", [("", ""), ("", "no-"), ("no-", ""), ("no-", "no-")], ids=str)
def test_a_switch_is_not_turned_twice(place, script, switch, way):
    flags = [f"--{no}{switch}" for no in way]
    assert place.refuses(script, *COMMANDS[script], *flags) == (
        f"error: --{switch} is given twice: give it once\n"
    )


OPTIMAL = ("to_training_arguments.py", "--output", "new.json", *TARGET, *MODEL, "--optimal")
CONFLICTS: list[tuple[str, ...]] = [
    *(
        (*OPTIMAL, *flags)
        for flags in (
            *(("--free-lunch",), ("--activation-checkpointing",), ("--offloading",)),
            *(("--sharding", name) for name in Sharding if name is not Sharding.NONE),
            *(("--micro-batch-size", "8"), ("--gradient-accumulation-steps", "64"), BATCH),
            *(("--batch-tolerance", tolerance) for tolerance in ("0.1", "nan", "1", "-1", "inf")),
        )
    ),
    ("to_training_arguments.py", *COMMANDS["to_training_arguments.py"], "--numerics", "reference"),
    *(
        ("print_optimal_config.py", *COMMANDS["print_optimal_config.py"], *flags)
        for flags in (
            *(("--save-seconds", "5"), ("--time-limit-hours", "5")),
            *(("--evaluation-examples", "5"), ("--evaluate-every-steps", "5")),
            ("--save-every-steps", "100000000", "--time-limit-hours", "1"),
            ("--save-every-steps", "1000", "--time-limit-hours", "1e-9"),
        )
    ),
    *(
        ("benchmark.py", *TARGET, *MODEL, "--cmd", command, "--slurm")
        for command in ("run", "count", "print-incomplete", "print-results", "dry-run")
    ),
    ("training.py", *COMMANDS["training.py"], "--resume"),
    (
        "training.py",
        *COMMANDS["training.py"][:2],
        "--model-type",
        "vit",
        *COMMANDS["training.py"][4:],
    ),
    ("training.py", *COMMANDS["training.py"], "--launcher.hostnames"),
    ("training.py", *COMMANDS["training.py"], "--launcher.hostnames", "a", ""),
    ("verify.py", *COMMANDS["verify.py"], "--launcher.workers-per-host", "2"),
    ("verify.py", *COMMANDS["verify.py"], "--launcher.workers-per-host", "cpu"),
    ("verify.py", *COMMANDS["verify.py"], "--launcher.workers-per-host", "gpu"),
]


@pytest.mark.parametrize("command", CONFLICTS, ids=" ".join)
def test_flags_that_contradict_each_other_are_refused(place, command):
    assert place.refuses(*command).startswith("error: ")
