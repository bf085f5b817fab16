from pathlib import Path
from typing import Any

import pytest

from academic_pretraining.cores import allowed_cores
from academic_pretraining.errors import (
    HardwareMismatchError,
    InvalidConfigError,
    InvalidFileError,
)
from experiments.launcher import LauncherOptions, refuse_other_gpu, refuse_other_workers

SETTING = {"hardware": {"num_nodes": 2, "gpus_per_node": 4, "gpu_type": "h200"}}
FIELDS = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 8}
SLURM = {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "3"}


@pytest.mark.parametrize(
    ("options", "environment", "number"),
    [
        ({}, {}, 4),
        ({"workers_per_host": 3}, {}, 3),
        ({"hostnames": ["a", "b", "c"]}, {}, 12),
        ({"hostnames": ["a", "b"], "workers_per_host": 1}, SLURM, 2),
        ({}, SLURM, 12),
        ({"hostnames": "slurm", "workers_per_host": 2}, SLURM, 6),
        ({}, {"SLURM_JOB_ID": "1"}, None),
        ({}, SLURM | {"SLURM_JOB_NUM_NODES": "many"}, None),
        ({"workers_per_host": "cpu"}, {}, len(allowed_cores())),
        ({"workers_per_host": "cpu"}, SLURM, None),
        ({"hostnames": ["a"], "workers_per_host": "gpu"}, {}, None),
    ],
    ids=str,
)
def test_workers_are_counted_where_they_are_known(options: Any, environment, number):
    assert LauncherOptions(**options).number_of_workers(SETTING, environment) == number


def test_gpus_are_counted_here(monkeypatch):
    monkeypatch.setattr("experiments.launcher.visible_devices", lambda environment: (1, 2, 3))
    options = LauncherOptions(workers_per_host="gpu")
    assert options.number_of_workers(SETTING, {}) == 3


@pytest.mark.parametrize("number", [None, 8])
def test_as_many_as_exported_are_let_through(number):
    refuse_other_workers(number, SETTING, FIELDS, source=Path("args.json"))


def test_what_stands_alone_is_let_through():
    refuse_other_workers(3, {}, FIELDS, source=Path("args.json"))


@pytest.mark.parametrize(
    ("number", "fields", "batches"),
    [(4, FIELDS, ("1,024", "512")), (16, {}, ("64", "128"))],
    ids=str,
)
def test_other_numbers_are_refused_with_the_batch_that_would_train(number, fields, batches):
    with pytest.raises(InvalidConfigError) as caught:
        refuse_other_workers(number, SETTING, fields, source=Path("args.json"))
    assert str(caught.value) == (
        "args.json was exported for 2 x 4 workers (nodes x GPUs in each), a batch of "
        f"{batches[0]}, but {number} would train, with a batch of {batches[1]}: start 8, with "
        "--launcher.hostnames and --launcher.workers-per-host, or export it for what is here"
    )


def test_variables_are_read_off_their_file(tmp_path):
    file = tmp_path / "e.env"
    file.write_text("# of the cluster\nexport A=1\n\n  B=x=y z\nC='a b'\nD=\n")
    assert LauncherOptions(env_file=str(file)).variables() == {
        "A": "1",
        "B": "x=y z",
        "C": "a b",
        "D": "",
    }
    assert LauncherOptions().variables() == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"A=1\nmodule load cuda\n", "e.env sets no variable in line 2: write NAME=VALUE"),
        (b"1A=1", "e.env sets no variable in line 1: write NAME=VALUE"),
        (b"\xff", "e.env cannot be read"),
    ],
)
def test_a_file_that_sets_no_variables_is_refused_beforehand(tmp_path, text, said):
    file = tmp_path / "e.env"
    file.write_bytes(text)
    with pytest.raises(InvalidFileError, match=said):
        LauncherOptions(env_file=str(file)).check()


def test_another_gpu_than_exported_for_is_refused():
    refuse_other_gpu("NVIDIA H200", SETTING, source=Path("args.json"))
    refuse_other_gpu("a GPU of tomorrow", {}, source=Path("args.json"))
    with pytest.raises(HardwareMismatchError) as caught:
        refuse_other_gpu("NVIDIA L40S", SETTING, source=Path("args.json"))
    assert str(caught.value) == (
        "args.json was exported for h200, but a worker runs on l40s: export it for what is "
        "here, or ask for nodes with that GPU"
    )
