"""Names of files and folders that lead nowhere; each is refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import COMMANDS, MODEL, SCRIPTS, TARGET, InProcess, furnished, spoilt

LONG = "n" * 300
# As Python holds a name of bytes that are no UTF-8.
BYTES = "caf\udce9"
MISSING = {
    "missing": "missing.json",
    "below nothing": "missing/deep/args.json",
    "below a file": "file/args.json",
    "above": "../../missing/args.json",
    "folder": "folder",
    "here": ".",
    "above here": "..",
    "root": "/",
    "empty": "",
    "overlong": LONG,
    "overlong below": f"folder/{LONG}/args.json",
    "overlong in all": "/".join(["folder"] * 1000),
    "NUL": "a\0b.json",
    "no UTF-8": f"{BYTES}.json",
    "newline": "a\nb.json",
    "terminal codes": "\x1b[2Ja\rb.json",
    "loop": "loop",
    "below a loop": "loop/args.json",
    "dangling": "dangling",
    "unreadable": "/proc/self/mem",
    "home": "~/missing.json",
    "wildcard": "*.json",
    "variable": "$HOME/args.json",
}
UNWRITABLE = {
    name: MISSING[name]
    for name in (
        *("below a file", "folder", "here", "above here", "root", "empty", "overlong"),
        *("overlong below", "overlong in all", "NUL", "below a loop"),
    )
} | {
    "just too long with its end": "n" * 250,
    "just too long beside": "n" * 245 + ".json",
    "in new folders too": "new/folders/" + "n" * 250,
    "in the system": "/proc/missing/args.json",
    "its other file is a folder": "taken.json",
}
NO_FOLDER = {
    name: MISSING[name]
    for name in (
        *("below a file", "overlong", "overlong below", "overlong in all", "NUL", "below a loop"),
    )
} | {"file": "file", "below a loop's file": "file/run/deep"}


@pytest.fixture
def place(tmp_path) -> InProcess:
    place = furnished(tmp_path)
    (place.folder / "file").write_text("mine")
    (place.folder / "folder").mkdir()
    (place.folder / "taken.setting.json").mkdir()
    (place.folder / "loop").symlink_to("loop")
    (place.folder / "dangling").symlink_to("missing")
    return place


@pytest.mark.parametrize("script", ["training.py", "verify.py"])
@pytest.mark.parametrize("case", MISSING)
def test_arguments_that_cannot_be_read_are_refused(place, script, case):
    said = place.refuses(script, *spoilt(script, "--training-arguments", MISSING[case]))
    assert said.startswith("error: ")
    assert said.endswith("): write one with scripts/to_training_arguments.py\n")


@pytest.mark.parametrize("script", ["training.py", "verify.py"])
def test_a_name_without_room_for_the_other_file_is_refused(place, script):
    name = "n" * 245 + ".json"
    (place.folder / name).write_text("{}")
    said = place.refuses(script, *spoilt(script, "--training-arguments", name))
    assert "cannot be looked for ([Errno 36] File name too long" in said


@pytest.mark.parametrize("case", UNWRITABLE)
@pytest.mark.parametrize("how", ["by hand", "optimal"])
def test_an_output_that_cannot_be_written_is_refused_and_leaves_nothing(place, case, how):
    script = "to_training_arguments.py"
    arguments = ["--output", UNWRITABLE[case], *COMMANDS[script][2:]]
    if how == "optimal":
        arguments = [*arguments[:2], *TARGET, *MODEL, "--optimal"]
    said = place.refuses(script, *arguments)
    assert said.startswith("error: ")
    assert said.endswith("): name another file\n")


@pytest.mark.parametrize("case", NO_FOLDER)
@pytest.mark.parametrize("resume", [False, True])
def test_an_output_folder_that_cannot_be_one_is_refused(place, case, resume):
    arguments = spoilt("training.py", "--output-dir", NO_FOLDER[case])
    said = place.refuses("training.py", *arguments, *(["--resume"] if resume else []))
    assert said.startswith("error: ")
    assert said.endswith((": name another\n", " holds no checkpoint: leave it out to begin\n"))


@pytest.mark.parametrize("script", ["training.py", "verify.py"])
@pytest.mark.parametrize("flag", ["--launcher.env-file", "--launcher.ssh-config-file"])
@pytest.mark.parametrize("case", [name for name in MISSING if name != "unreadable"])
def test_a_file_of_the_launcher_that_is_none_is_refused(place, script, flag, case):
    said = place.refuses(script, *COMMANDS[script], flag, MISSING[case])
    assert said.startswith(f"error: {flag} ")
    assert said.endswith(" is no file: name one, or none\n")


READ_RESULTS = [
    ("benchmark.py", *COMMANDS["benchmark.py"]),
    ("benchmark.py", *spoilt("benchmark.py", "--cmd", "print-incomplete")),
    ("benchmark.py", *spoilt("benchmark.py", "--cmd", "run")),
    ("print_optimal_config.py", *COMMANDS["print_optimal_config.py"]),
    ("to_training_arguments.py", *COMMANDS["to_training_arguments.py"]),
    ("to_training_arguments.py", "--output", "new.json", *TARGET, *MODEL, "--optimal"),
]


@pytest.mark.parametrize("command", READ_RESULTS, ids=" ".join)
@pytest.mark.parametrize(
    "name", ["file", "file/below", "loop", "dangling", LONG, f"folder/{LONG}", "folder/" * 1000]
)
def test_a_workspace_that_cannot_be_one_is_refused(place, command, name):
    place.workspace = Path(name)
    said = place.refuses(*command)
    assert said.startswith("error: the workspace ")
    assert said.endswith("TANGO_WORKSPACE_DIR\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("command", READ_RESULTS, ids=" ".join)
def test_a_workspace_that_may_not_be_read_is_refused(place, command):
    (place.workspace / "cache").chmod(0)
    status, out, err = place.run(*command)
    (place.workspace / "cache").chmod(0o755)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: the workspace {place.workspace} cannot be read (")


AS_PROCESSES = [
    ("benchmark.py", *spoilt("benchmark.py", "--num-nodes", "9" * 4300)),
    ("benchmark.py", *spoilt("benchmark.py", "--cmd", "count", "--num-nodes=2")),
    ("print_optimal_config.py", *spoilt("print_optimal_config.py", "--num-nodes", "nan")),
    ("print_optimal_config.py", *COMMANDS["print_optimal_config.py"], "--save-seconds", "nan"),
    ("to_training_arguments.py", *spoilt("to_training_arguments.py", "--output", "taken.json")),
    (
        "to_training_arguments.py",
        *spoilt("to_training_arguments.py", "--output", f"{BYTES}/{LONG}"),
    ),
    ("training.py", *spoilt("training.py", "--training-arguments", f"{BYTES}\n\x1b[2J.json")),
    ("training.py", *spoilt("training.py", "--output-dir", LONG)),
    ("training.py", *COMMANDS["training.py"], "--launcher.hostnames", "slurm"),
    ("verify.py", *spoilt("verify.py", "--training-arguments", "loop")),
    ("verify.py", *COMMANDS["verify.py"], "--tolerance", "inf", "--tolerance", "0.1"),
]


@pytest.mark.parametrize("command", AS_PROCESSES, ids=lambda command: command[0])
def test_a_process_answers_as_the_script_does_here(place, command):
    here = place.refuses(*command)
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / command[0]), *command[1:]],
        cwd=place.folder,
        env=os.environ | place.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == here
