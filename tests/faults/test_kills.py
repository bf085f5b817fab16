"""kill -9 of scripts/benchmark.py at random moments, also between a result and its metadata."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
KILLS = 50


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kills")
    paths = [str(HERE.parent), str(HERE.parents[1] / "scripts")]
    done = subprocess.run(
        [sys.executable, str(HERE / "killing.py"), str(folder), str(KILLS), "1"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_was_killed_that_often_and_in_the_middle_of_measuring_too(found):
    assert found["kills"] == KILLS
    assert 0 < found["deaths_while_measuring"] < KILLS


def test_a_death_costs_the_setting_in_progress_at_most(found):
    assert found["most_lost"] == 1
    assert found["fell_back"] == 0
    assert found["unreadable"] == 0


def test_every_workspace_was_completed_by_the_next_run(found):
    assert found["workspaces"] > 1
    assert found["recovery_failed"] == 0


def test_no_session_of_the_dead_is_left(found):
    assert found["left_over"] == 0
