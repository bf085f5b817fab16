"""Trainings that fail or are stopped: a line, and neither processes nor folders are left."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from in_process import SCRIPTS

from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import MODELS
from academic_pretraining.training_arguments import training_arguments_fields

pytestmark = pytest.mark.slow

# Two thousand tokens take seconds on a CPU, and thirty-two tell the same.
SHORT = """
import dataclasses
from academic_pretraining import models
short = dataclasses.replace(models.MODELS["pythia-14m"], sequence_length=32)
models.MODELS = {**models.MODELS, "pythia-14m": short}
"""
COMMANDS = {
    "training.py": (
        *("--output-dir", "run", "--model-type", "pythia-14m"),
        *("--training-arguments", "args.json"),
    ),
    "verify.py": ("--training-arguments", "args.json", "--steps", "100000"),
}
# What is cached there is for the next one.
CACHES = ("torchinductor_",)


@pytest.fixture
def begin(tmp_path) -> Callable[..., subprocess.Popen[bytes]]:
    """Begin a training that would last for days; what it says is in `said`."""
    for name in ("paths", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "paths" / "sitecustomize.py").write_text(SHORT)
    machine = Hardware(num_nodes=1, gpus_per_node=1, gpu_type="cpu")
    config = TrainingConfig(hardware=machine, recipe=MODELS["pythia-14m"], method=Method())
    fields = training_arguments_fields(config, config.plan(1, 1024))
    fields |= {"gradient_accumulation_steps": 1}

    def start(script: str, **changes) -> subprocess.Popen[bytes]:
        text = json.dumps(fields | changes)
        (tmp_path / "args.json").write_text(text)
        setting = {
            "model": "pythia-14m",
            "hardware": {"num_nodes": 1, "gpus_per_node": 1, "gpu_type": "cpu"},
            "arguments_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "prediction": {"step_seconds": 1.0, "peak_bytes": 1, "mfu": None},
        }
        (tmp_path / "args.setting.json").write_text(json.dumps(setting))
        paths = [str(tmp_path / "paths"), os.environ.get("PYTHONPATH", "")]
        with (tmp_path / "said").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, SCRIPTS / script, *COMMANDS[script]],
                cwd=tmp_path,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                    "TMPDIR": str(tmp_path / "tmp"),
                    "CUDA_VISIBLE_DEVICES": "",
                },
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    return start


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


def wait_for_steps(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until three steps are done, or the training has ended."""

    # The bar may show every other step alone, so that a given one is never seen.
    def ended_or_going() -> bool:
        shown = re.findall(rb"(\d+)/143000 ", (folder / "said").read_bytes())
        return process.poll() is not None or any(int(step) >= 3 for step in shown)

    wait_for(ended_or_going)


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(CACHES)]


STOPPED = [
    ("training.py", signal.SIGTERM, True, False),
    # While torchrunx waits for its agent, and does not listen.
    ("training.py", signal.SIGINT, False, True),
    ("verify.py", signal.SIGTERM, True, True),
]
STOPPED_TOO = [
    (script, number, training, whole_group)
    for script in COMMANDS
    for number in (signal.SIGINT, signal.SIGTERM)
    for training in (False, True)
    for whole_group in (False, True)
    if (script, number, training, whole_group) not in STOPPED
]


@pytest.mark.parametrize(
    ("script", "number", "training", "whole_group"),
    [*STOPPED, *(pytest.param(*case, marks=pytest.mark.thorough) for case in STOPPED_TOO)],
)
def test_what_is_stopped_leaves_nothing(
    begin, tmp_path, living_in_group, script, number, training, whole_group
):
    process = begin(script)
    if training:
        wait_for_steps(process, tmp_path)
    else:
        wait_for(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 2)
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(timeout=60) == 130
    said = (tmp_path / "said").read_text()
    # An agent that is still starting does not know where to say that it was interrupted, too.
    assert "Traceback" not in said or (whole_group and not training)
    assert said.splitlines()[-1].startswith("stopped: ")
    assert living_in_group(process.pid, patience_seconds=0.0) == []
    assert left_in(tmp_path / "tmp") == []


@pytest.mark.parametrize(
    "script", ["verify.py", pytest.param("training.py", marks=pytest.mark.thorough)]
)
def test_what_is_killed_leaves_no_process(begin, tmp_path, living_in_group, script):
    process = begin(script)
    wait_for_steps(process, tmp_path)
    process.kill()
    process.wait()
    assert living_in_group(process.pid, patience_seconds=60.0) == []


@pytest.mark.parametrize(
    "script", ["training.py", pytest.param("verify.py", marks=pytest.mark.thorough)]
)
def test_what_a_worker_raises_is_said_in_a_line(begin, tmp_path, living_in_group, script):
    # What is installed is for the worker to say, who may be on another machine.
    process = begin(script, use_liger_kernel=True)
    assert process.wait(timeout=180) == 2
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert last.startswith("error: the training of args.json failed: ImportError: You have set ")
    assert last.endswith("; what workers said stands above")
    assert living_in_group(process.pid, patience_seconds=0.0) == []
    assert left_in(tmp_path / "tmp") == []
