"""Two or more scripts on one workspace: no setting twice at once, nothing broken, nothing lost."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.workspace import read_records

TESTS = Path(__file__).parents[1]

# Measures a grid with a stand-in for the GPUs, that notes when it begins and when it ends.
SCRIPT = """
import dataclasses, json, os, sys, time
from pathlib import Path

import benchmark
import experiments.steps
from _cli import run
from samples import MEASURED


def note(what, config):
    line = json.dumps([time.time(), what, config.method.label]) + chr(10)
    descriptor = os.open(os.environ["NOTES"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def measure(config, effort, *, sessions, on_probe, notes):
    note("begins", config)
    time.sleep(0.1)
    note("ends", config)
    return dataclasses.replace(MEASURED)


experiments.steps.measure = measure
sys.argv[0] = "benchmark.py"
print("ready", flush=True)
sys.stdin.readline()
run(benchmark.main)
"""
GRID = ("--num-nodes", "1", "--gpus-per-node", "2", "--gpu-type", "cpu", "--model", "pythia-14m")
LEFT = "being measured by another process: left to it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """How one of the scripts ended."""

    status: int
    err: str


@pytest.fixture
def together(tmp_path):
    """Run scripts with these arguments at the same time; give their ends and their notes."""

    def start(*grids: tuple[str, ...]) -> tuple[list[Run], list[tuple[str, str]]]:
        environment = os.environ | {
            "TANGO_WORKSPACE_DIR": str(tmp_path / "workspace"),
            "NOTES": str(tmp_path / "notes"),
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "scripts")]),
            "CUDA_VISIBLE_DEVICES": "",
        }
        scripts = [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *grid],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for grid in grids
        ]
        for script in scripts:
            assert script.stdout is not None
            assert script.stdout.readline() == "ready\n"
        for script in scripts:
            assert script.stdin is not None
            script.stdin.write("\n")
            script.stdin.flush()
        runs = []
        for script in scripts:
            _, err = script.communicate(timeout=120)
            runs.append(Run(status=script.returncode, err=err))
        lines = (tmp_path / "notes").read_text().splitlines()
        return runs, [(what, label) for _, what, label in sorted(map(json.loads, lines))]

    return start


def test_a_grid_is_shared(together, tmp_path):
    runs, notes = together(GRID, GRID, GRID)
    begun = [label for what, label in notes if what == "begins"]
    assert len(begun) == len(set(begun)) == 13
    records, unreadable = read_records(tmp_path / "workspace")
    assert (len(records), unreadable) == (13, [])
    for run in runs:
        assert "Traceback" not in run.err
        # What the others are still measuring in the end is named, and only that makes it 1.
        assert run.status == ("no result for" in run.err)
        assert ("no result for" in run.err) <= (LEFT in run.err)
    assert sum("13 settings measured" in run.err for run in runs) < len(runs)

    (again,), after = together(GRID)
    assert (again.status, after) == (0, notes)
    assert "0 settings measured, 13 recalled" in again.err


def test_different_grids_do_not_disturb_each_other(together, tmp_path):
    other = (*GRID[:-1], "pythia-31m")
    runs, notes = together(GRID, other)
    assert [run.status for run in runs] == [0, 0]
    assert len([what for what, _ in notes if what == "begins"]) == 26
    records, unreadable = read_records(tmp_path / "workspace")
    assert (len(records), unreadable) == (26, [])
