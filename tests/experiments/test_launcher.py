from pathlib import Path
from typing import Any

import pytest

from academic_pretraining.cores import allowed_cores
from academic_pretraining.errors import InvalidConfigError
from experiments.launcher import LauncherOptions, refuse_other_workers

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
