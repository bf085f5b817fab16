import hashlib
import json

import pytest

SCRIPT = "verify.py"
FLAGS = ("--training-arguments", "args.json")
NOTHING = "there is no prediction beside args.json: measure"
ON_CPU = {"num_nodes": 1, "gpus_per_node": 1, "gpu_type": "cpu"}
SETTING = {
    "model": "pythia-14m",
    "hardware": ON_CPU,
    "arguments_sha256": hashlib.sha256(b"{}").hexdigest(),
    "prediction": {"step_seconds": 1.0, "peak_bytes": 1, "mfu": None},
}


@pytest.fixture
def exported(cli):
    (cli.folder / "args.json").write_text("{}")

    def write(**changes):
        (cli.folder / "args.setting.json").write_text(json.dumps(SETTING | changes))

    write()
    return write


@pytest.mark.parametrize("value", ["0", "-0.1", "1", "nan", "inf"])
@pytest.mark.parametrize("flag", ["--tolerance", "--memory-tolerance"])
def test_a_tolerance_is_a_share(cli, exported, flag, value):
    message = cli.refuses(SCRIPT, *FLAGS, flag, value)
    assert message == (f"{flag} is {float(value)}, but must be above 0 and below 1: 0.03 allows 3%")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_limit_is_a_time(cli, exported, value):
    message = cli.refuses(SCRIPT, *FLAGS, "--limit-seconds", value)
    assert message == f"--limit-seconds is {float(value)}, but must be above 0 and below 86400"


@pytest.mark.parametrize("value", [2, 0, -3])
def test_steps_are_more_than_the_warm_up(cli, exported, value):
    message = cli.refuses(SCRIPT, *FLAGS, "--steps", value)
    assert message == f"--steps is {value}, but the first two are warm-up: give 3 or more"


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction": None},
        {"arguments_sha256": "edited"},
        {"prediction": {}},
        {"prediction": [1]},
        {"prediction": {"step_seconds": 0, "peak_bytes": 1}},
        {"prediction": {"step_seconds": "1"}},
    ],
    ids=str,
)
def test_without_a_prediction_there_is_nothing_to_verify(cli, exported, changes):
    exported(**changes)
    assert cli.refuses(SCRIPT, *FLAGS).startswith(
        "there is no prediction beside args.json: measure"
    )


def test_arguments_without_their_setting_cannot_be_verified(cli):
    (cli.folder / "args.json").write_text("{}")
    assert cli.refuses(SCRIPT, *FLAGS).startswith(
        "there is no prediction beside args.json: measure"
    )


def test_arguments_that_are_not_there_are_named(cli):
    assert cli.refuses(SCRIPT, *FLAGS).startswith("args.json is not a readable JSON file (")


def test_another_machine_is_refused(cli, exported):
    exported(hardware=ON_CPU | {"gpu_type": "h200"})
    assert "but this machine has no GPU" in cli.refuses(SCRIPT, *FLAGS)


def test_an_unknown_model_is_refused(cli, exported):
    exported(model="pythia-15m")
    assert "pythia-15m" in cli.refuses(SCRIPT, *FLAGS)


def test_a_prediction_for_several_nodes_needs_them(cli, exported):
    exported(hardware={"num_nodes": 2, "gpus_per_node": 8, "gpu_type": "h200"})
    assert cli.refuses(SCRIPT, *FLAGS).startswith("the prediction is for 2 nodes, and this is one")


def test_another_number_of_workers_is_refused(cli, exported):
    assert cli.refuses(SCRIPT, *FLAGS, "--launcher.workers-per-host", 2) == (
        "--launcher.workers-per-host is 2, but the prediction is for 1 GPUs in each node: leave it "
        "out"
    )
