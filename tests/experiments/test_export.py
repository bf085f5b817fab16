import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import InvalidFileError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.records import to_record
from academic_pretraining.results import frame, select
from academic_pretraining.training_arguments import training_arguments_fields
from experiments.export import (
    export,
    gave_compilation_up,
    prediction,
    read_json,
    read_setting,
    setting_path,
)
from experiments.identity import cache_key

TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")
PREDICTED = {
    "step_seconds": 2.5,
    "step_seconds_standard_error": 0.01,
    "peak_bytes": 3 * 2**30,
    "mfu": 0.4,
    "compiled": True,
}


def config_of(
    method: Method | None = None, model: str = "pythia-160m", hardware: Hardware = TWO
) -> TrainingConfig:
    method = method or Method(free_lunch=True)
    return TrainingConfig(hardware=hardware, recipe=MODELS[model], method=method)


@pytest.fixture
def record_of(measurer, silent):
    """Write a record whose timings are at the micro-batch sizes given."""

    def make(
        config: TrainingConfig,
        at: float = 1.0,
        *,
        state: str = "on",
        recipe: dict[str, Any] | None = None,
        **step_seconds: float,
    ):
        measurement = measurer(config, None, sessions=Sessions(Path()), on_probe=silent.probes)
        timings = tuple(
            dataclasses.replace(
                measurement.best,
                micro_batch_size=config.plan_at(int(name[1:])).micro_batch_size,
                gradient_accumulation_steps=(
                    config.plan_at(int(name[1:])).gradient_accumulation_steps
                ),
                step_seconds=seconds,
                compiled=state in ("on", "no graph"),
            )
            for name, seconds in step_seconds.items()
        )
        measurement = dataclasses.replace(measurement, timings=timings, compile=state)
        record = to_record(config, measurement, versions={}, measured_at=at)
        record["key"] = cache_key(config)
        record["config"]["recipe"] |= recipe or {}
        return json.loads(json.dumps(record))

    return make


@pytest.mark.parametrize(
    ("output", "beside"),
    [
        ("args.json", "args.setting.json"),
        ("a/b.c/args.v2.json", "a/b.c/args.v2.setting.json"),
        ("args", "args.setting.json"),
        ("run.naive", "run.naive.setting.json"),
        ("a/run.fast", "a/run.fast.setting.json"),
        (".json", ".json.setting.json"),
    ],
)
def test_the_rest_stands_beside(output, beside):
    assert setting_path(Path(output)) == Path(beside)


def test_an_export_does_not_take_anothers_setting(tmp_path):
    config = config_of()
    for name in ("a.json", "run.naive", "run.fast", "noext"):
        export(tmp_path / name, config, config.plan_at(16), [])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 8
    for name, why in (
        ("a.setting.json", "it is the setting of another"),
        ("a", "its setting would be that of a.json too"),
        ("noext.json", "its setting would be that of noext too"),
    ):
        with pytest.raises(InvalidFileError) as caught:
            export(tmp_path / name, config, config.plan_at(8), [])
        assert str(caught.value) == (
            f"{tmp_path}/{name} cannot be written ([Errno 22] {why}: '{tmp_path}/{name}'): name "
            "another file"
        )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_measured_plan_predicts_not_only_the_best_one(record_of):
    config = config_of()
    record = record_of(config, b16=2.5, b8=4.0)
    found = {size: prediction([record], config, config.plan_at(size)) for size in (8, 16, 32)}
    assert found[8] == PREDICTED | {"step_seconds": 4.0}
    assert found[16] == PREDICTED
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


def test_a_newer_measurement_without_this_plan_leaves_the_older_ones_prediction(record_of):
    config = config_of()
    records = [record_of(config, 1.0, b16=2.5), record_of(config, 2.0, b8=4.0)]
    assert prediction(records, config, config.plan_at(16)) == PREDICTED


def test_a_compiled_timing_does_not_outlive_a_compilation_that_fails(record_of):
    config = config_of()
    compiled = record_of(config, 1.0, b16=2.5)
    eager = record_of(config, 2.0, b16=4.0, state="off")
    failed = record_of(config, 3.0, b8=5.0, state="failed")
    assert prediction([compiled, failed], config, config.plan_at(16)) is None
    found = prediction([compiled, eager, failed], config, config.plan_at(16))
    assert found is not None
    assert (found["step_seconds"], found["compiled"]) == (4.0, False)


@pytest.mark.parametrize("changes", [{"learning_rate": 1.0}, {"architecture": {}}], ids=str)
def test_an_older_recipe_predicts_nothing(record_of, changes):
    config, plan = config_of(), config_of().plan_at(16)
    old = record_of(config, 2.0, b16=1.0, state="failed", recipe=changes)
    assert prediction([old], config, plan) is None
    assert not gave_compilation_up([old], config)
    both = [old, record_of(config, 1.0, b16=2.5)]
    assert prediction(both, config, plan) == PREDICTED
    assert not gave_compilation_up(both, config)


def test_other_training_arguments_predict_nothing(record_of):
    config, plan = config_of(), config_of().plan_at(16)
    other = record_of(config, 2.0, b16=1.0, state="failed")
    key = json.loads(other["key"])
    other["key"] = json.dumps(key | {"arguments": key["arguments"] | {"optim": "sgd"}})
    assert prediction([other], config, plan) is None
    assert not gave_compilation_up([other], config)
    assert prediction([other, record_of(config, 1.0, b16=2.5)], config, plan) == PREDICTED


def test_another_wording_of_a_recipe_predicts_alike(record_of):
    config = config_of()
    reworded = record_of(config, b16=2.5, recipe={"note": "other", "parameter_count": 1})
    assert prediction([reworded], config, config.plan_at(16)) == PREDICTED


def test_both_files_hold_what_trains(tmp_path, record_of):
    config = config_of(Method(free_lunch=True, sharding=Sharding.ZERO_3))
    output = tmp_path / "new" / "args.json"
    records = [record_of(config, b16=2.5, b8=4.0)]
    assert export(output, config, config.plan_at(16), iter(records)) == PREDICTED
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


def test_the_prediction_is_not_that_of_edited_arguments(tmp_path, record_of):
    output, config = tmp_path / "args.json", config_of()
    export(output, config, config.plan_at(16), [record_of(config, b16=2.5)])
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
    "hardware",
    [
        *(None, 2, [], {}, {"num_nodes": 1, "gpus_per_node": 2}),
        {"num_nodes": 1, "gpus_per_node": 2, "gpu_type": "h200", "price": 3},
    ],
    ids=str,
)
def test_a_setting_that_does_not_say_for_what_is_refused(tmp_path, hardware):
    output, config = tmp_path / "args.json", config_of()
    export(output, config, config.plan_at(16), [])
    setting = json.loads(setting_path(output).read_text())
    setting_path(output).write_text(json.dumps(setting | {"hardware": hardware}))
    message = re.escape(
        f"{setting_path(output)} does not say for which hardware it is: write one with "
        "scripts/to_training_arguments.py"
    )
    with pytest.raises(InvalidFileError, match=f"^{message}$"):
        read_setting(output)


# Plans that were measured, and one that was not.
@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize(
    ("state", "compiled"),
    [
        ("on", True),
        ("no graph", True),
        ("failed", False),
        ("slower", False),
        ("too large", False),
        (None, True),
    ],
)
def test_a_compilation_that_failed_or_was_slower_is_not_asked_for_again(
    tmp_path, record_of, state, compiled, size
):
    config = config_of()
    records = [record_of(config, state=state, b16=2.5, b8=4.0)] if state else []
    predicted = export(tmp_path / "args.json", config, config.plan_at(size), records)
    assert json.loads((tmp_path / "args.json").read_text())["torch_compile"] is compiled
    assert (predicted is None) is (state is None or size == 32)
    assert predicted is None or predicted["compiled"] is compiled
    assert gave_compilation_up(records, config) is (compiled is False)


@pytest.mark.parametrize("faster", [True, False])
def test_a_plan_timed_with_and_without_compilation_trains_in_the_faster_way(
    tmp_path, record_of, faster
):
    config = config_of(Method(free_lunch=True, sharding=Sharding.ZERO_3))
    record = record_of(config, state="on" if faster else "slower", b16=2.5)
    [timing] = record["measurement"]["timings"]
    record["measurement"]["timings"] = [
        timing | {"compiled": not faster, "step_seconds": 3.0},
        timing | {"compiled": faster},
    ]
    predicted = export(tmp_path / "args.json", config, config.plan_at(16), [record])
    assert predicted is not None
    assert (predicted["step_seconds"], predicted["compiled"]) == (2.5, faster)
    assert json.loads((tmp_path / "args.json").read_text())["torch_compile"] is faster


@pytest.mark.parametrize("size", [8, 16, 32])
def test_a_plan_is_compiled_as_when_its_time_was_taken(tmp_path, record_of, size):
    # A compilation that failed at one size only, and so in the newest measurement.
    config = config_of()
    record = record_of(config, state="failed", b16=2.5, b8=4.0)
    record["measurement"]["timings"][0]["compiled"] = True
    export(tmp_path / "args.json", config, config.plan_at(size), [record])
    compiled = json.loads((tmp_path / "args.json").read_text())["torch_compile"]
    assert compiled is (size == 16)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("newest", "failed"), [("failed", True), ("on", False)])
def test_the_newest_measurement_says_whether_it_compiles(record_of, newest, failed, order):
    config = config_of()
    older = "on" if newest == "failed" else "failed"
    records = [record_of(config, at, state=s) for at, s in ((1.0, older), (2.0, newest))]
    assert gave_compilation_up(records[::order], config) is failed


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "other",
    [{"versions": {"torch": "2.5"}}, {"limits": {"timing_seconds": 1.0}}],
    ids=["other versions", "limited"],
)
def test_a_setting_is_exported_from_the_record_that_wins(tmp_path, record_of, order, other):
    config = config_of()
    naive = record_of(config_of(Method()), 3.0, state="off", b16=9.0)
    failed = record_of(config, 2.0, state="failed", b16=5.0) | other
    records = [record_of(config, 1.0, b16=2.5), failed, naive]
    [row] = select(frame(records), config.hardware, config.recipe.name).filter(
        free_lunch=True, current_libraries=True
    ).to_dicts() or [None]
    assert row is not None
    assert row["compile"] == "on"
    predicted = export(tmp_path / "args.json", config, config.plan_at(16), records[::order])
    assert predicted is not None
    assert (predicted["step_seconds"], predicted["compiled"]) == (2.5, True)
    assert json.loads((tmp_path / "args.json").read_text())["torch_compile"] is True


@pytest.mark.parametrize("order", [1, -1])
def test_a_setting_is_not_exported_from_what_was_measured_beside_others(record_of, order):
    config = config_of()
    limited = {"limits": {"timing_seconds": 1.0}}
    alone = record_of(config, 1.0, b16=2.5) | limited
    beside = record_of(config, 2.0, b16=9.0) | limited
    beside["measurement"] = {**beside["measurement"], "company": "GPU 1 has 20.0 GiB in use"}
    found = prediction([alone, beside][::order], config, config.plan_at(16))
    assert found is not None
    assert found["step_seconds"] == 2.5


def test_other_versions_than_the_newest_result_predict_nothing(record_of):
    config = config_of()
    newest = record_of(config_of(Method()), 2.0, b16=1.0) | {"versions": {"torch": "9"}}
    assert prediction([record_of(config, b16=2.5), newest], config, config.plan_at(16)) is None


@pytest.mark.parametrize("method", [Method(), Method(free_lunch=True, sharding=Sharding.ZERO_1)])
def test_another_settings_compilation_is_its_own_affair(record_of, method):
    assert not gave_compilation_up([record_of(config_of(method), state="failed")], config_of())


def test_what_is_naive_is_never_compiled(tmp_path, record_of):
    config = config_of(Method())
    for records in ([], [record_of(config, state="off", b16=2.5)]):
        export(tmp_path / "args.json", config, config.plan_at(16), records)
        assert json.loads((tmp_path / "args.json").read_text())["torch_compile"] is False


def test_what_was_there_is_replaced(tmp_path):
    output, config = tmp_path / "args.json", config_of()
    output.write_text("x" * 100_000)
    assert export(output, config, config.plan_at(16), []) is None
    first = output.read_bytes(), setting_path(output).read_bytes()
    export(output, config, config.plan_at(16), [])
    assert (output.read_bytes(), setting_path(output).read_bytes()) == first
    assert json.loads(first[1])["prediction"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"args.json", "args.setting.json"}


@pytest.mark.parametrize("name", ["file/args.json", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    config = config_of()
    with pytest.raises(InvalidFileError) as caught:
        export(tmp_path / name, config, config.plan_at(16), [])
    start = re.escape(f"{tmp_path / name} cannot be written (")
    assert re.fullmatch(start + r".+\): name another file", str(caught.value))
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder"}


def test_a_pipe_is_not_replaced(tmp_path):
    output, config = tmp_path / "args.json", config_of()
    os.mkfifo(output)
    with pytest.raises(InvalidFileError, match="it is no regular file"):
        export(output, config, config.plan_at(16), [])
    assert output.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["args.json"]


def test_what_a_link_names_is_written(tmp_path):
    config = config_of()
    (tmp_path / "kept").mkdir()
    (tmp_path / "args.json").symlink_to(tmp_path / "kept" / "real.json")
    export(tmp_path / "args.json", config, config.plan_at(16), [])
    assert (tmp_path / "args.json").is_symlink()
    assert json.loads((tmp_path / "kept" / "real.json").read_text())["learning_rate"] > 0
    assert read_setting(tmp_path / "args.json")["model"] == config.recipe.name
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    with pytest.raises(InvalidFileError, match="name another file"):
        export(tmp_path / "loop.json", config, config.plan_at(16), [])


def test_an_export_that_fails_changes_neither_file(tmp_path):
    output, config = tmp_path / "args.json", config_of()
    output.write_text("{}")
    setting_path(output).write_text("[]")
    (tmp_path / "args.json.partial").mkdir()
    with pytest.raises(InvalidFileError):
        export(output, config, config.plan_at(16), [])
    assert (output.read_text(), setting_path(output).read_text()) == ("{}", "[]")
    assert not (tmp_path / "args.setting.json.partial").exists()
