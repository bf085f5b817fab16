"""What training.py does with checkpoints and workers that are not those it was exported for."""

import json
import runpy
from pathlib import Path

import pytest
from in_process import COMMANDS, SCRIPTS, Accepted, InProcess, furnished

from academic_pretraining.benchmarking.checkpoints import STATE, mark
from academic_pretraining.errors import InvalidConfigError

TRAINING = ("training.py", *COMMANDS["training.py"])
BATCH = "args.json was exported for 1 x 1 workers (nodes x GPUs in each), a batch of 1,024, but "
START = ": start 1, with --launcher.hostnames and --launcher.workers-per-host, or export it for "


@pytest.fixture
def place(tmp_path) -> InProcess:
    return furnished(tmp_path)


def save(place: InProcess, step: int) -> Path:
    path = place.folder / "run" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / STATE).write_text(json.dumps({"global_step": step, "epoch": 0.0}))
    mark(path)
    return path


def test_another_training_s_folder_is_refused(place):
    save(place, 14)
    assert place.refuses(*TRAINING) == (
        "error: run holds checkpoint-14: give --resume to go on, or name another folder\n"
    )


@pytest.mark.parametrize(
    ("step", "flags", "said"),
    [
        (143_000, (), "the training is over (143,000 of 143,000 steps)\n"),
        (
            *(12, ("--stop-after-steps", "10")),
            "the training is at step 12: --stop-after-steps is 10\n",
        ),
    ],
)
def test_a_training_that_is_over_writes_nothing(place, step, flags, said):
    save(place, step)
    before = place.files()
    assert place.run(*TRAINING, "--resume", *flags) == (0, said, "")
    assert place.files() == before


def test_a_training_goes_on_from_the_newest_whole_checkpoint(place, monkeypatch, capfd):
    launched = []

    class Launcher:
        def __init__(self, **options):
            pass

        def run(self, *arguments, **named):
            launched.append(named["checkpoint"])
            raise Accepted

    monkeypatch.setattr("in_process._accept", Launcher)
    path = save(place, 8)
    (save(place, 14) / STATE).unlink()
    with pytest.raises(Accepted):
        place.run(*TRAINING, "--resume", "--stop-after-steps", "10")
    assert launched == [path.resolve()]


@pytest.mark.parametrize("script", ["training.py", "verify.py"])
def test_another_number_of_nodes_is_refused(place, script):
    flags = ("--launcher.hostnames", "a", "b")
    said = place.refuses(script, *COMMANDS[script], *flags)
    assert said == f"error: {BATCH}2 would train, with a batch of 2,048{START}what is here\n"


def test_another_number_of_workers_is_refused(place):
    said = place.refuses(*TRAINING, "--launcher.workers-per-host", "3")
    assert said == f"error: {BATCH}3 would train, with a batch of 3,072{START}what is here\n"


def test_a_worker_refuses_to_be_one_of_another_number(tmp_path, monkeypatch):
    # Where it does not, nothing is to be trained.
    monkeypatch.setattr("transformers.trainer.Trainer.__init__", None)
    setting = {"hardware": {"num_nodes": 2, "gpus_per_node": 1, "gpu_type": "cpu"}}
    fields = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    train = runpy.run_path(str(SCRIPTS / "training.py"))["train"]
    with pytest.raises(InvalidConfigError, match="but 1 would train, with a batch of 8: start 2"):
        train(fields, "pythia-14m", setting, source=tmp_path / "args.json")


def test_a_folder_that_cannot_be_made_is_said(place):
    arguments = ["--output-dir", "/proc/run", *TRAINING[3:]]
    assert place.refuses("training.py", *arguments) == (
        "error: /proc/run cannot be made ([Errno 2] No such file or directory: '/proc/run'): name "
        "another folder\n"
    )


@pytest.mark.parametrize("alone", [True, False])
def test_arguments_that_stand_alone_are_warned_of(place, monkeypatch, alone):
    def launcher(**options):
        raise OSError(28, "No space left")

    monkeypatch.setattr("in_process._accept", launcher)
    if alone:
        (place.folder / "args.setting.json").unlink()
    _, _, said = place.run(*TRAINING)
    warning = (
        "warning: there is no args.setting.json beside args.json: attention and kernels are the "
        "default ones, whatever was measured, and no hardware is checked"
    )
    assert said.splitlines()[:-1] == ([warning] if alone else [])
