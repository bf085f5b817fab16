import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest

from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import InvalidFileError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.results import to_record
from academic_pretraining.training_arguments import training_arguments_fields
from experiments.export import export, prediction, read_json, read_setting, setting_path

TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")
PREDICTED = {
    "step_seconds": 2.0,
    "step_seconds_standard_error": 0.1,
    "peak_bytes": 7,
    "mfu": 0.5,
    "compile": "on",
}


def config_of(
    method: Method | None = None, model: str = "pythia-160m", hardware: Hardware = TWO
) -> TrainingConfig:
    method = method or Method(free_lunch=True)
    return TrainingConfig(hardware=hardware, recipe=MODELS[model], method=method)


@pytest.fixture
def record_of(measurer, silent):
    """Write a record whose timings are at the micro-batch sizes given."""

    def make(config: TrainingConfig, at: float = 1.0, **step_seconds: float):
        measurement = measurer(config, None, scratch=Path(), on_probe=silent.probes)
        timings = tuple(
            dataclasses.replace(
                measurement.best,
                micro_batch_size=config.plan_at(int(name[1:])).micro_batch_size,
                gradient_accumulation_steps=(
                    config.plan_at(int(name[1:])).gradient_accumulation_steps
                ),
                step_seconds=seconds,
            )
            for name, seconds in step_seconds.items()
        )
        measurement = dataclasses.replace(measurement, timings=timings)
        record = to_record(config, measurement, versions={}, measured_at=at)
        return json.loads(json.dumps(record))

    return make


@pytest.mark.parametrize(
    ("output", "beside"),
    [
        ("args.json", "args.setting.json"),
        ("a/b.c/args.v2.json", "a/b.c/args.v2.setting.json"),
        ("args", "args.setting.json"),
    ],
)
def test_the_rest_stands_beside(output, beside):
    assert setting_path(Path(output)) == Path(beside)


def test_the_measured_plan_predicts_not_only_the_best_one(record_of):
    config = config_of()
    record = record_of(config, b16=2.5, b8=4.0)
    found = {size: prediction([record], config, config.plan_at(size)) for size in (8, 16, 32)}
    assert found[8] == {
        "step_seconds": 4.0,
        "step_seconds_standard_error": 0.01,
        "peak_bytes": 3 * 2**30,
        "mfu": 0.4,
        "compile": "on",
    }
    assert found[16] is not None
    assert found[16]["step_seconds"] == 2.5
    assert found[32] is None


@pytest.mark.parametrize(
    "other",
    [
        config_of(Method()),
        config_of(Method(free_lunch=True, sharding=Sharding.ZERO_1)),
        config_of(model="vit"),
        config_of(hardware=Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h100")),
        config_of(hardware=Hardware(num_nodes=2, gpus_per_node=1, gpu_type="h200")),
    ],
    ids=lambda config: config.label,
)
def test_another_setting_predicts_nothing(record_of, other):
    config = config_of()
    assert prediction([record_of(other, b16=2.5)], config, config.plan_at(16)) is None


def test_nothing_measured_predicts_nothing(record_of):
    config = config_of()
    assert prediction([], config, config.plan_at(16)) is None
    assert prediction([record_of(config)], config, config.plan_at(16)) is None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_newest_measurement_predicts(record_of, order):
    config = config_of()
    records = [record_of(config, at, b16=s) for at, s in ((10.0, 1.0), (30.0, 9.0), (20.0, 5.0))]
    found = prediction([records[i] for i in order], config, config.plan_at(16))
    assert found is not None
    assert found["step_seconds"] == 9.0


def test_both_files_hold_what_trains(tmp_path):
    config = config_of(Method(free_lunch=True, sharding=Sharding.ZERO_3))
    output = tmp_path / "new" / "args.json"
    export(output, config, config.plan_at(16), PREDICTED)
    assert {path.name for path in output.parent.iterdir()} == {"args.json", "args.setting.json"}
    fields = json.loads(output.read_text())
    assert fields == training_arguments_fields(config, config.plan_at(16))
    assert json.loads(setting_path(output).read_text()) == {
        "model": "pythia-160m",
        "attention": "sdpa",
        "free_lunch": True,
        "hardware": {"num_nodes": 1, "gpus_per_node": 2, "gpu_type": "h200"},
        "method": "free-lunch + ZeRO-3",
        "prediction": PREDICTED,
        "arguments_sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
    }
    assert read_json(output) == fields
    assert read_setting(output) == json.loads(setting_path(output).read_text())


def test_the_prediction_is_not_that_of_edited_arguments(tmp_path):
    output, config = tmp_path / "args.json", config_of()
    export(output, config, config.plan_at(16), PREDICTED)
    whole = read_setting(output)
    assert whole["prediction"] == PREDICTED
    output.write_text(output.read_text().replace(": 16,", ": 8,"))
    assert read_setting(output) == whole | {"prediction": None}


def test_arguments_may_stand_alone(tmp_path):
    (tmp_path / "args.json").write_text("{}")
    assert read_setting(tmp_path / "args.json") == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "{",
            "is not a readable JSON file (Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)): ",
        ),
        ("[]", "holds no JSON object: "),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path, content, reason):
    output = tmp_path / "args.json"
    output.write_text("{}")
    setting_path(output).write_text(content)
    with pytest.raises(InvalidFileError) as caught:
        read_setting(output)
    assert str(caught.value) == (
        f"{setting_path(output)} {reason}write one with scripts/to_training_arguments.py"
    )


@pytest.mark.parametrize(
    ("state", "compiled"), [("on", True), ("no graph", True), ("failed", False), (None, True)]
)
def test_a_compilation_that_failed_is_not_asked_for_again(tmp_path, state, compiled):
    config = config_of()
    predicted = PREDICTED | {"compile": state} if state else None
    export(tmp_path / "args.json", config, config.plan_at(16), predicted)
    assert json.loads((tmp_path / "args.json").read_text())["torch_compile"] is compiled


def test_what_was_there_is_replaced(tmp_path):
    output, config = tmp_path / "args.json", config_of()
    output.write_text("x" * 100_000)
    export(output, config, config.plan_at(16), None)
    first = output.read_bytes(), setting_path(output).read_bytes()
    export(output, config, config.plan_at(16), None)
    assert (output.read_bytes(), setting_path(output).read_bytes()) == first
    assert json.loads(first[1])["prediction"] is None


@pytest.mark.parametrize("name", ["file/args.json", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    config = config_of()
    with pytest.raises(InvalidFileError) as caught:
        export(tmp_path / name, config, config.plan_at(16), None)
    start = re.escape(f"{tmp_path / name} cannot be written (")
    assert re.fullmatch(start + r".+\): name another file", str(caught.value))
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder"}
