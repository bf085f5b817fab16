"""Records as they are read from a workspace, and rows as methods."""

import copy
import json
from typing import Any

import pytest
from samples import MEASURED, ONE, OUT_OF_MEMORY, TWO, kept_record

from academic_pretraining.checks import check_record
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.methods import Method, MethodSpace, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.records import RECORD_VERSION, Measurement, about, config_of, to_record
from academic_pretraining.results import frame, method_of

METHODS = [m for m, why in grid(TWO, MODELS["pythia-160m"], MethodSpace.ALL) if not why]


def record_of(method: Method = METHODS[0], measurement: Measurement = MEASURED) -> dict[str, Any]:
    config = TrainingConfig(hardware=TWO, recipe=MODELS["pythia-160m"], method=method)
    return json.loads(json.dumps(to_record(config, measurement, versions={}, measured_at=1.0)))


def changed(path: str, value: Any = None, *, remove: bool = False) -> dict[str, Any]:
    """Take something out of a record, or put something else there."""
    record = copy.deepcopy(record_of())
    *parents, name = path.split(".")
    inner = record
    for parent in parents:
        inner = inner[parent]
    if remove:
        del inner[name]
    else:
        inner[name] = value
    return record


@pytest.mark.parametrize("measurement", [MEASURED, OUT_OF_MEMORY], ids=lambda m: m.outcome)
def test_what_was_written_is_accepted(measurement):
    for method in METHODS:
        check_record(record_of(method, measurement))


@pytest.mark.parametrize(
    "path",
    [
        *("config", "config.hardware", "config.recipe", "config.method"),
        *("config.recipe.name", "config.recipe.max_steps", "config.recipe.sequence_length"),
        *("measurement", "measurement.outcome", "measurement.best", "measurement.compile"),
        *("measurement.kernels", "measurement.device_name", "measurement.seconds"),
        *("measurement.seconds.all", "measurement.out_of_memory_free_bytes"),
        *("versions", "measured_at"),
    ],
)
def test_what_is_missing_is_named(path):
    name = path.rpartition(".")[2]
    with pytest.raises(ValueError, match=rf"^broken record: KeyError '{name}'$"):
        check_record(changed(path, remove=True))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("config", None), ("config.hardware", None), ("config.hardware", "h200")),
        *(("config.method", []), ("config.recipe", 3), ("config.recipe.max_steps", "many")),
        *(("measurement", "measured"), ("measurement.best", [1]), ("measurement.best", "fast")),
        *(("measurement.best.step_seconds", "fast"), ("measurement.best.peak_bytes", "2 GiB")),
        *(("measurement.seconds", None), ("measurement.out_of_memory_free_bytes", "much")),
        *(("versions", None), ("measured_at", "today"), ("measured_at", {})),
        *(("measurement.best.step_degrees_of_freedom", few) for few in (-1, -40, 2.5, "3")),
    ],
)
def test_what_is_of_another_type_is_broken(path, value):
    record = changed(path, value)
    if path.endswith("free_bytes"):
        record["measurement"]["out_of_memory_requested_bytes"] = 1
    with pytest.raises(ValueError, match=r"^broken record: \w+ "):
        check_record(record)


def test_more_than_is_needed_is_no_fault():
    for path in ("note", "measurement.note", "config.recipe.note_2", "measurement.best.note"):
        record = changed(path, "new")
        check_record(record)
        assert frame([record]).height == 1


def test_a_rows_method_is_the_one_that_was_measured():
    rows = frame(record_of(method) for method in METHODS).iter_rows(named=True)
    assert [method_of(row) for row in rows] == METHODS
    assert len(METHODS) == 23


def test_a_record_from_before_communication_was_looked_at_is_read():
    record = changed("measurement.best.communication_share", remove=True)
    del record["measurement"]["timings"][0]["communication_share"]
    check_record(record)
    assert frame([record])["communication_share"].to_list() == [None]
    assert frame([record_of()])["communication_share"].to_list() == [0.05]


def test_a_record_is_json_and_holds_the_configuration():
    method = Method(free_lunch=True, sharding=Sharding.ZERO_2, offloading=True)
    record = kept_record(method, hardware=ONE)
    assert record["version"] == RECORD_VERSION
    assert config_of(record) == TrainingConfig(
        hardware=ONE, recipe=MODELS["pythia-160m"], method=method
    )
    assert record["measurement"]["best"]["samples"] == [[4, 0.54], [8, 0.82]]
    assert record["measurement"]["seconds"] == MEASURED.seconds


def test_records_are_those_about_one_hardware_and_model():
    wanted = kept_record(Method())
    others = [kept_record(hardware=ONE), kept_record(model="vit")]
    assert about([others[0], wanted, others[1]], TWO, "pythia-160m") == [wanted]
    assert about(others, TWO, "pythia-160m") == []
