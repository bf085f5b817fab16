import subprocess
import sys

import pytest

from academic_pretraining.benchmarking import stacks

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
def test_stacks_are_written_once(deadline_seconds):
    text = written(f"with stacks.dumped_if_not_done({deadline_seconds}):\n    probe(4.0)")
    assert text.count("most recent call first") == 1
    assert " in probe\n" in text


@pytest.mark.parametrize(("deadline_seconds", "after"), [(0.4, 0.2), (2.0, 1.0), (60.0, 59.0)])
def test_stacks_are_written_before_the_deadline(monkeypatch, deadline_seconds, after):
    asked = []
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda s, file: asked.append(s))
    with stacks.dumped_if_not_done(deadline_seconds):
        assert asked == [after]
    assert asked == [after, 0.8 * stacks.START_SECONDS]


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
    text = written(f"stacks.START_SECONDS = 1.0\n{before}\nstart(4.0)")
    assert text.count("most recent call first") == 1
    assert " in start\n" in text
