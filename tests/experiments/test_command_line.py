import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from academic_pretraining.errors import InvalidConfigError, InvalidFileError
from experiments.command_line import answer


def run(main, arguments=(), unknown=()):
    def parse(called, *, return_unknown_args):
        assert return_unknown_args
        return called(), unknown

    return answer(parse, main, arguments, stopped="go on")


@pytest.mark.parametrize(("given", "status"), [(None, 0), (0, 0), (1, 1)])
def test_the_status_is_that_of_main(given, status, capsys):
    assert run(lambda: given) == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            InvalidFileError("a\nb\x1b[2J\udcff is none: name another"),
            r"a\nb\x1b[2J\udcff is none: ",
        ),
        (InvalidConfigError("one", "two"), "one; two"),
    ],
)
def test_an_error_is_one_plain_line(error, line, capsys):
    def main():
        raise error

    assert run(main) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_a_long_error_keeps_its_end(capsys):
    def main():
        raise InvalidFileError("n" * 10_000 + ": name another")

    assert run(main) == 2
    err = capsys.readouterr().err
    assert len(err) < 2100
    assert err.endswith("nnn: name another\n")


def test_an_interruption_is_said(capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def main():
        raise KeyboardInterrupt

    assert run(main) == 130
    assert capsys.readouterr().err == "stopped: go on\n"


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--a-b", "1", "--a-b", "2"], "--a-b"),
        (["--a-b=1", "--a_b", "2"], "--a-b"),
        (["--switch", "--no-switch"], "--switch"),
        (["--a.b-c", "1", "--other", "--a.b_c=1"], "--a.b-c"),
    ],
)
def test_a_flag_given_twice_is_refused(arguments, flag, capsys):
    assert run(lambda: None, arguments) == 2
    assert capsys.readouterr().err == f"error: {flag} is given twice: give it once\n"


@pytest.mark.parametrize("arguments", [["--a", "1", "--b", "1"], ["x", "x"], ["-a", "-a"]])
def test_other_flags_and_values_may_be_alike(arguments):
    assert run(lambda: None, arguments) == 0


@pytest.mark.parametrize("unknown", [["--sharp", "1"], ["--sharp"]])
def test_a_flag_that_there_is_not_is_refused_before_anything_is_done(unknown, capsys):
    def main():
        raise AssertionError

    assert run(main, unknown, unknown) == 2
    assert capsys.readouterr() == (
        "",
        "error: --sharp is unknown here: --help lists the flags\n",
    )


def test_what_is_parsed_is_the_scripts_own_signature():
    def main(steps: int = 3) -> None:
        """Do something."""

    def parse(called, **_):
        assert inspect.signature(called) == inspect.signature(main)
        assert called.__doc__ == "Do something."
        return called(), []

    assert answer(parse, main, [], stopped="") == 0


AT_LENGTH = """
import sys
from experiments.command_line import answer

def main():
    for _ in range(9):
        print("x" * 9_000)
        print("y" * 9_000, file=sys.stderr)
    open("went-on", "w").close()
    return {status}

sys.exit(answer(lambda called, **_: (called(), []), main, [], stopped="go on"))
"""
FULL = "error: standard output cannot be written (No space left on device): send it elsewhere\n"
TOLD = ("y" * 9_000 + "\n") * 9


def told(folder: Path, redirection: str, status: int = 0) -> tuple[int, str]:
    """Run something that says much; give its status and what came through of stderr."""
    shell = ["bash", "-c", f'"$@" {redirection}; exit "${{PIPESTATUS[0]}}"', "bash"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", AT_LENGTH.format(status=status)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert (folder / "went-on").exists()
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">/dev/full", 1, TOLD + FULL),
        ("| true", 0, TOLD),
        (">&-", 0, TOLD),
        ("2>/dev/full", 0, ""),
        ("2>&1 | true", 0, ""),
        ("2>&-", 0, ""),
        (">/dev/full 2>/dev/full", 1, ""),
        (">&- 2>&-", 0, ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_streams_that_take_nothing_end_nothing(
    tmp_path, monkeypatch, redirection, status, said, unbuffered
):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    assert told(tmp_path, redirection) == (status, said)


@pytest.mark.parametrize("redirection", [">/dev/full", "| true", ">&-", "2>/dev/full", ""])
def test_a_status_of_its_own_is_kept(tmp_path, redirection):
    assert told(tmp_path, redirection, status=3)[0] == 3


LINGERS = """
import atexit, sys, time
from experiments.command_line import answer

def main():
    print("ready", flush=True)
    time.sleep(600)

atexit.register(sys.stdin.read)
sys.exit(answer(lambda called, **_: (called(), []), main, [], stopped="go on"))
"""


def test_an_interruption_that_is_repeated_is_answered_once():
    process = subprocess.Popen(
        [sys.executable, "-c", LINGERS],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopped: go on\n"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    assert process.communicate() == ("", "")
    assert process.returncode == 130


BOX = """\
\x1b[31m╭─\x1b[0m Value error ─────────────────────╮
│ \x1b[1mError parsing --size:\x1b[0m no type      │
│ matching INT in ['│ x']. │
│                                    │
│ Got errors:                        │
│ - <class 'int'>: invalid           │
│ ────────────────────────────────── │
│ Argument helptext:                 │
│     --size INT                     │
│ ────────────────────────────────── │
│ For full helptext, see it --help   │
╰────────────────────────────────────╯
"""


def test_what_the_parser_refuses_is_said_in_a_line_without_its_frame(capsys):
    def parse(called, **_):
        print(BOX, file=sys.stderr, end="")
        raise SystemExit(2)

    assert answer(parse, main_of_nothing, [], stopped="") == 2
    assert capsys.readouterr().err == (
        "error: --size: no type matching INT in ['│ x']: --help lists the flags\n"
    )


def test_what_the_parser_says_without_refusing_is_passed_on(capsys):
    def parse(called, **_):
        print("warning: odd", file=sys.stderr)
        return called(), []

    assert answer(parse, main_of_nothing, [], stopped="") == 0
    assert capsys.readouterr().err == "warning: odd\n"


def main_of_nothing() -> None:
    pass
