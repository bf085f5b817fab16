import subprocess
import sys

import pytest

PROGRAM = """
import time
from academic_pretraining.benchmarking import stacks

def probe(seconds):
    time.sleep(seconds)

def start(seconds):
    time.sleep(seconds)

{lines}
"""


def written(lines: str) -> str:
    """Run lines in a process of their own, as there is one watch in each."""
    program = PROGRAM.format(lines=lines)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("deadline_seconds", [0.4, 1.3])
def test_stacks_are_written_before_the_deadline_and_once(deadline_seconds):
    text = written(
        f"with stacks.dumped_if_not_done({deadline_seconds}):\n    probe({deadline_seconds})"
    )
    assert text.count("most recent call first") == 1
    assert " in probe\n" in text


def test_what_is_over_in_time_leaves_no_stacks():
    assert written("with stacks.dumped_if_not_done(3.0):\n    probe(0.1)\nstart(2.5)") == ""


def test_what_fails_leaves_no_stacks():
    lines = (
        "import contextlib\n"
        "with contextlib.suppress(ValueError), stacks.dumped_if_not_done(2.0):\n"
        "    raise ValueError\n"
        "start(1.5)"
    )
    assert written(lines) == ""


@pytest.mark.parametrize(
    "before", ["stacks.dump_if_not_begun()", "with stacks.dumped_if_not_done(9.0):\n    probe(0.1)"]
)
def test_stacks_are_written_where_no_probe_begins(before):
    text = written(f"stacks.START_SECONDS = 1.0\n{before}\nstart(1.0)")
    assert text.count("most recent call first") == 1
    assert " in start\n" in text
