"""Kill scripts/benchmark.py again and again and say what each death cost.

`python killing.py FOLDER KILLS SEED`, with tests/ and scripts/ on PYTHONPATH, measures a grid with
a stand-in for the GPUs in processes that it forks, kills each at a random moment, in turn by the
clock and by the count of what it does to files, and lets the next one go on in the same workspace;
a whole one is followed by a new one. The last run of each workspace is left alone. Prints a JSON
object.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import benchmark  # pyright: ignore[reportMissingImports]
from _cli import run  # pyright: ignore[reportMissingImports]
from samples import MEASURED

import experiments.steps
import experiments.sweep  # Once, and not in every child.
from academic_pretraining.benchmarking.scratch import remove_abandoned, session_folder
from experiments.workspace import METADATA, read_records

ARGUMENTS = [
    "--num-nodes",
    "1",
    "--gpus-per-node",
    "2",
    "--gpu-type",
    "cpu",
    "--model",
    "pythia-14m",
]
MEASURING_SECONDS = 0.02


def main(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    events, seconds, whole = _survey(folder / "survey")
    found = {"kills": 0, "survived": 0, "most_lost": 0, "fell_back": 0, "unreadable": 0}
    found |= {
        "settings": whole,
        "deaths_while_measuring": 0,
        "workspaces": 0,
        "recovery_failed": 0,
        "left_over": 0,
    }
    while found["kills"] < kills:
        workspace = folder / f"workspace{found['workspaces']}"
        found["workspaces"] += 1
        while len(_records(workspace)) < whole and found["kills"] < kills:
            before = _records(workspace)
            began = _count(workspace)
            by_clock = found["kills"] % 2
            status = _fork(
                workspace,
                after_events=None if by_clock else chance.randrange(1, events),
                after_seconds=chance.uniform(0, seconds) if by_clock else None,
            )
            if status != -signal.SIGKILL:
                found["survived"] += 1
                continue
            found["kills"] += 1
            after = _records(workspace)
            lost = _count(workspace) - began - (len(after) - len(before))
            found["deaths_while_measuring"] += lost
            found["most_lost"] = max(found["most_lost"], lost)
            found["fell_back"] += not before <= after
            # One without metadata had not been finished, and is measured again.
            found["unreadable"] += sum(
                broken.path.with_name(METADATA).exists()
                for broken in read_records(workspace / "tango")[1]
            )
        status = _fork(workspace)
        found["recovery_failed"] += status != 0 or len(_records(workspace)) != whole
        remove_abandoned(workspace / "tango" / "sessions")
        found["left_over"] += len(list((workspace / "tango" / "sessions").iterdir()))
    print(json.dumps(found))


def _survey(workspace: Path) -> tuple[int, float, int]:
    """Count what an undisturbed run does, in events, seconds and settings."""
    began = time.monotonic()
    assert _fork(workspace, after_events=10**9) == 0
    return int((workspace / "events").read_text()), time.monotonic() - began, _count(workspace)


def _fork(
    workspace: Path, *, after_events: int | None = None, after_seconds: float | None = None
) -> int:
    """Run the script in a child; give its status, negative for a signal."""
    workspace.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if not child:
        _script(workspace, after_events)
    if after_seconds is not None:
        time.sleep(after_seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    signal.alarm(60)
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status)


def _script(workspace: Path, after_events: int | None) -> None:
    os.environ["TANGO_WORKSPACE_DIR"] = str(workspace / "tango")
    log = os.open(workspace / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["benchmark.py", *ARGUMENTS]
    experiments.steps.measure = _measure
    happened = [0]

    def watch(event, arguments):
        if any(str(workspace) in str(argument) for argument in arguments):
            happened[0] += 1
            if happened[0] == after_events:
                os.kill(os.getpid(), signal.SIGKILL)

    if after_events is not None:
        sys.addaudithook(watch)
    status = 1
    try:
        run(benchmark.main)
    except SystemExit as end:
        status = int(end.code or 0)
    (workspace / "events").write_text(str(happened[0]))
    os._exit(status)


def _measure(config, effort, *, sessions, on_probe, notes):
    scratch = sessions.scratch
    remove_abandoned(scratch)
    with session_folder(scratch) as folder:
        begun = scratch.parents[1] / "begun"
        descriptor = os.open(begun, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, b".")
        os.close(descriptor)
        (folder / "rank0.log").write_text("training")
        time.sleep(MEASURING_SECONDS)
    return dataclasses.replace(MEASURED)


def _records(workspace: Path) -> set[str]:
    return {record["key"] for record in read_records(workspace / "tango")[0]}


def _count(workspace: Path) -> int:
    begun = workspace / "begun"
    return begun.stat().st_size if begun.exists() else 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
