"""The way through it, on a real small training: stop, measure, recall, export, train."""

import hashlib
import json
import os
import re
import signal
import subprocess
from types import SimpleNamespace

import psutil
import pytest

from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import MODELS
from academic_pretraining.training_arguments import training_arguments_fields

pytestmark = pytest.mark.slow

CPU = ("--num-nodes", 1, "--gpus-per-node", 1, "--gpu-type", "cpu", "--model", "pythia-14m")
BENCHMARK = ("benchmark.py", *CPU, "--methods", "naive", "--timing-seconds", 1)
# Two thousand tokens take seconds on a CPU, and thirty-two tell the same.
SHORT = """
import dataclasses
from academic_pretraining import models
short = dataclasses.replace(models.MODELS["pythia-14m"], sequence_length=32)
models.MODELS = {**models.MODELS, "pythia-14m": short}
"""
STOPPED = "stopped: what was measured is kept, run the same command to go on"


@pytest.fixture(scope="module")
def stopped(command_line, tmp_path_factory):
    """Press Ctrl-C while a setting is timed."""
    cli = command_line(tmp_path_factory.mktemp("journey"))
    cli.real = tmp_path_factory.mktemp("short")
    (cli.real / "sitecustomize.py").write_text(SHORT)
    with (cli.folder / "stderr").open("w+") as said:
        process = subprocess.Popen(
            cli.command(*BENCHMARK),
            cwd=cli.folder,
            env=cli.environment(torch=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            said.write(line)
            if "timing at micro-batch 1" in line:
                break
        # What it does next would be over in two seconds.
        process.send_signal(signal.SIGSTOP)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
        said.write(err)
        said.seek(0)
        lines = said.read().splitlines()
    left = psutil.wait_procs(children, timeout=30)[1]
    return SimpleNamespace(
        cli=cli, status=process.returncode, out=out, lines=lines, children=children, left=left
    )


@pytest.fixture(scope="module")
def measured(stopped):
    """Give the same command again, twice."""
    cli = stopped.cli
    incomplete = cli(*BENCHMARK, "--cmd", "print-incomplete", torch=True)
    first = cli(*BENCHMARK, torch=True)
    results = cli.files()
    return SimpleNamespace(
        cli=cli,
        incomplete=incomplete,
        first=first,
        results=results,
        second=cli(*BENCHMARK, torch=True),
    )


@pytest.fixture(scope="module")
def exported(measured):
    cli = measured.cli
    # With the short recipe still: a result of another one is none.
    answer = cli("to_training_arguments.py", "--output", "args.json", *CPU, "--optimal", torch=True)
    read = (json.loads((cli.folder / f"args{end}.json").read_text()) for end in ("", ".setting"))
    fields, setting = read
    return SimpleNamespace(cli=cli, answer=answer, fields=fields, setting=setting)


def test_ctrl_c_is_answered_in_a_line(stopped):
    assert stopped.status == 130
    assert stopped.out == ""
    assert stopped.lines[0] == "[1/1] naive"
    assert stopped.lines[1].endswith("timing at micro-batch 1")
    assert stopped.lines[2:] == [STOPPED]


def test_ctrl_c_leaves_no_process(stopped):
    # The launcher, its agent and the rank at least.
    assert len(stopped.children) >= 3
    assert stopped.left == []


def test_the_same_command_goes_on_where_it_was_stopped(measured):
    assert measured.incomplete.out.splitlines() == [
        "1 of 1 settings have no result",
        "  pythia-14m on 1 x cpu: naive",
    ]
    assert measured.first.status == 0
    assert "1 settings measured, 0 recalled\n" in measured.first.err
    # However wide the table is, and wherever its cells are folded.
    words = " ".join(measured.first.out.replace("│", " ").split())
    for part in ("pythia-14m", "(with", "1 x cpu", "naive", "1 x 1024"):
        assert part in words


def test_what_was_measured_is_recalled(measured):
    assert measured.second.status == 0
    assert measured.second.err == "0 settings measured, 1 recalled\n"
    assert measured.second.out == measured.first.out
    changed = {
        path.name
        for path, content in measured.cli.files().items()
        if measured.results.get(path, b"") != content
    }
    assert "data.json" not in changed


def test_the_winner_is_exported_with_its_prediction(exported):
    assert exported.answer.status == 0
    machine = Hardware(num_nodes=1, gpus_per_node=1, gpu_type="cpu")
    config = TrainingConfig(hardware=machine, recipe=MODELS["pythia-14m"], method=Method())
    assert exported.fields == training_arguments_fields(config, config.plan(1, 1024))
    assert exported.setting["model"] == "pythia-14m"
    prediction = exported.setting["prediction"]
    assert prediction["step_seconds"] > 0
    assert prediction["peak_bytes"] > 2**28
    assert (prediction["mfu"], prediction["compiled"]) == (None, False)


def test_a_training_tells_its_speed(exported, monkeypatch):
    cli = exported.cli
    monkeypatch.setenv("SECRET_TOKEN_FOR_TEST", secret := "hunter2-correct-horse")
    # A step of the published batch would take minutes here.
    quick = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    (cli.folder / "args.json").write_text(json.dumps(exported.fields | quick))
    answer = cli(
        *("training.py", "--output-dir", "run", "--model-type", "pythia-14m"),
        *("--training-arguments", "args.json", "--stop-after-steps", 11),
        torch=True,
    )
    assert answer.status == 0
    assert "Traceback" not in answer.err
    # After the first eight that are timed, and in the end.
    assert re.findall(r"(\d+) steps, standard error", answer.out) == ["8", "9"]
    assert "1 optimizer step is left, which alone takes" in answer.out
    assert "Launching" not in answer.out + answer.err
    speed = json.loads((cli.folder / "run" / "speed.json").read_text())
    assert list(speed) == [
        *("steps", "step_seconds", "step_standard_error_seconds", "samples", "unit"),
        *("units_per_second", "mfu", "peak_bytes", "predicted", "finished_at"),
        "other_cpu_share",
    ]
    # The first two are warm-up.
    assert speed["steps"] == len(speed["samples"]) == 9
    assert speed["step_seconds"] == pytest.approx(sum(speed["samples"]) / 9)
    assert min(speed["samples"]) > 0
    assert speed["peak_bytes"] is None
    assert speed["other_cpu_share"] is None or 0 <= speed["other_cpu_share"] <= 1
    # What was predicted is not for arguments that were edited.
    assert speed["predicted"] is None
    assert {path.name for path in (cli.folder / "run").iterdir()} == {"logs", "speed.json"}
    logs = [path.read_text() for path in (cli.folder / "run" / "logs").rglob("*.log")]
    assert any(logs)
    assert secret not in "".join([*logs, answer.out, answer.err])


@pytest.mark.parametrize(
    ("tolerance", "status", "verdict"),
    [
        pytest.param(0.5, 1, "predicted step is -", marks=pytest.mark.thorough),
        (0.999999, 0, "the prediction holds"),
    ],
)
def test_a_prediction_is_verified(exported, tolerance, status, verdict):
    cli = exported.cli
    # The published batch of 1,024 would take minutes: as if a small one had been measured.
    quick = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    text = json.dumps(exported.fields | quick)
    (cli.folder / "small.json").write_text(text)
    setting = json.loads((cli.folder / "args.setting.json").read_text())
    setting["arguments_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    # Whatever this machine is doing, a step takes longer than that, and not a million times.
    setting["prediction"] = {"step_seconds": 1e-3, "peak_bytes": 1, "mfu": None}
    (cli.folder / "small.setting.json").write_text(json.dumps(setting))
    answer = cli(
        *("verify.py", "--training-arguments", "small.json", "--tolerance", tolerance),
        *("--limit-seconds", 5),
        torch=True,
    )
    assert (answer.status, "Traceback" in answer.err) == (status, False)
    lines = answer.out.splitlines()
    assert lines[-1].startswith(verdict)
    assert re.match(r"\d+ steps?.* actual +predicted +difference", lines[0])
    assert "5,000 timed ones at most, 0.001 s each as predicted" in answer.err
    assert float(lines[1].split()[1]) > 1e-3
    assert not list(cli.folder.glob("checkpoint-*"))
