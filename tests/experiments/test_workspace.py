import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.config import config_to_dict
from academic_pretraining.errors import InvalidFileError
from academic_pretraining.records import config_of
from academic_pretraining.results import frame
from experiments.steps import MeasureContext, measure_step
from experiments.sweep import sweep
from experiments.workspace import Unreadable, incomplete, read_records

DATA, METADATA = "data.json", "cache-metadata.json"


@pytest.fixture
def folder(configs, measurer, silent, tmp_path) -> Path:
    """Give a workspace with a result of each configuration."""
    sweep(configs, tmp_path, QUICK, silent)
    return tmp_path


def result_of(config, folder: Path) -> Path:
    step = measure_step(MeasureContext(config, QUICK, Sessions(folder)))
    return folder / "cache" / step.unique_id


def methods(records) -> set[str]:
    return {config_of(record).method.label for record in records}


def labels(configs) -> set[str]:
    return {config.method.label for config in configs}


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_results_has_none(tmp_path, there):
    assert read_records(tmp_path if there else tmp_path / "nowhere") == ([], [])


def test_all_results_are_read_as_written(folder, configs):
    records, unreadable = read_records(folder)
    assert unreadable == []
    assert len(records) == len(configs)
    assert [json.dumps(r) for r in read_records(folder)[0]] == [json.dumps(r) for r in records]
    assert {config_of(record).method for record in records} == {c.method for c in configs}
    assert sorted(frame(records)["step_seconds"]) == [1.0, 2.0, 3.0, 4.0]


def test_results_are_read_after_a_move_and_without_tango(folder, configs, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, moved)
    shutil.rmtree(moved / "locks")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from experiments.workspace import read_records\n"
        "records, unreadable = read_records(Path(sys.argv[1]))\n"
        "assert not {'tango', 'torch', 'transformers'} & set(sys.modules)\n"
        "print(len(records), len(unreadable))\n"
    )
    arguments = [sys.executable, "-c", code, str(moved)]
    reader = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert reader.stdout.split() == [str(len(configs)), "0"]


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (60, "line 1 column"),
        (0, "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_a_truncated_result_is_named_and_the_others_are_read(folder, configs, kept, reason):
    path = result_of(configs[1], folder) / DATA
    path.write_bytes(path.read_bytes()[:kept])
    records, (broken,) = read_records(folder)
    assert broken.path == path
    assert reason in broken.reason
    assert methods(records) == labels(configs) - labels([configs[1]])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "not a record of this toolkit"),
        (b'{"config": {}, "measurement": {}}', "not a record of this toolkit"),
        (
            b'{"version": 99, "config": {}, "measurement": {}, "measured_at": 0}',
            "record version 99, but 1 is read here",
        ),
    ],
)
def test_what_is_no_record_is_named(folder, configs, content, reason):
    path = result_of(configs[0], folder) / DATA
    path.write_bytes(content)
    records, unreadable = read_records(folder)
    assert unreadable == [Unreadable(path=path, reason=reason)]
    assert methods(records) == labels(configs[1:])


def without(record, *path):
    """Take something out of a record."""
    *parents, name = path
    for parent in parents:
        record = record[parent]
    del record[name]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (("config",), "broken record: KeyError 'config'"),
        (("config", "recipe", "name"), "broken record: KeyError 'name'"),
        (("measurement", "seconds"), "broken record: KeyError 'seconds'"),
        (("measured_at",), "broken record: KeyError 'measured_at'"),
        (("versions",), "broken record: KeyError 'versions'"),
    ],
)
def test_a_record_that_lacks_something_inside_is_named(folder, configs, path, reason):
    data = result_of(configs[0], folder) / DATA
    record = json.loads(data.read_text())
    without(record, *path)
    data.write_text(json.dumps(record))
    records, unreadable = read_records(folder)
    assert unreadable == [Unreadable(path=data, reason=reason)]
    assert methods(records) == labels(configs[1:])


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("config", "hardware", None),
        ("config", "recipe", "pythia"),
        ("measurement", "best", [1]),
        ("measurement", "seconds", {"all": "long"}),
    ],
)
def test_a_record_with_something_else_inside_is_named(folder, configs, part, name, value):
    data = result_of(configs[0], folder) / DATA
    record = json.loads(data.read_text())
    record[part][name] = value
    data.write_text(json.dumps(record))
    records, (broken,) = read_records(folder)
    assert broken.path == data
    assert broken.reason.startswith("broken record: ")
    assert methods(records) == labels(configs[1:])
    assert frame(records).height == 3


def test_bytes_that_are_no_text_are_named(folder, configs):
    path = result_of(configs[0], folder) / DATA
    path.write_bytes(b"\xff\xfe\x00")
    records, (broken,) = read_records(folder)
    assert broken.path == path
    assert methods(records) == labels(configs[1:])


def test_a_result_without_its_data_is_named(folder, configs):
    path = result_of(configs[2], folder) / DATA
    path.unlink()
    records, (broken,) = read_records(folder)
    assert broken.path == path
    assert "No such file" in broken.reason
    assert methods(records) == labels(configs) - labels([configs[2]])


def test_a_result_without_metadata_is_not_whole_and_is_measured_again(
    folder, configs, measurer, silent
):
    (result_of(configs[0], folder) / METADATA).unlink()
    records, (broken,) = read_records(folder)
    assert methods(records) == labels(configs[1:])
    assert broken.reason == "cache-metadata.json is missing beside it: it is measured again"
    measurer.taken()
    end = sweep(configs, folder, QUICK, silent)
    assert measurer.taken() == [configs[0]]
    assert methods(end.records) == labels(configs)
    assert methods(read_records(folder)[0]) == labels(configs)


def test_other_files_in_the_cache_are_left_alone(folder, configs):
    other = folder / "cache" / "OtherStep-001-abc"
    other.mkdir()
    (other / METADATA).write_text("{}")
    (other / DATA).write_text("{}")
    (folder / "cache" / "MeasureStep-note.txt").write_text("mine")
    records, unreadable = read_records(folder)
    assert unreadable == []
    assert methods(records) == labels(configs)


def test_what_has_a_result_of_its_key_is_complete(folder, configs):
    assert incomplete(configs, folder) == []
    within = [dataclasses.replace(config, batch_tolerance=0.01) for config in configs]
    assert incomplete(within, folder) == []
    recipe = dataclasses.replace(configs[0].recipe, learning_rate=1.0)
    changed = [dataclasses.replace(config, recipe=recipe) for config in configs]
    assert incomplete([*configs, *changed], folder) == changed


@pytest.mark.parametrize("key", [None, "", "another"])
def test_a_result_without_its_key_is_none_of_this_setting(folder, configs, key):
    data = result_of(configs[1], folder) / DATA
    record = json.loads(data.read_text())
    if key is None:
        del record["key"]
    else:
        record["key"] = key
    data.write_text(json.dumps(record))
    assert len(read_records(folder)[0]) == 4
    assert incomplete(configs, folder) == [configs[1]]


def test_a_result_that_cannot_be_read_is_incomplete(folder, configs):
    (result_of(configs[2], folder) / DATA).write_text("{")
    assert incomplete(configs, folder) == [configs[2]]


def test_what_would_be_read_for_ever_is_left_out(folder, configs):
    paths = [result_of(config, folder) / DATA for config in configs[:3]]
    for path in paths:
        path.unlink()
    os.mkfifo(paths[0])
    paths[1].symlink_to("/dev/zero")
    with paths[2].open("w") as file:
        file.truncate(2**40)
    records, unreadable = read_records(folder)
    assert methods(records) == labels(configs[3:])
    assert {result.path: result.reason for result in unreadable} == {
        paths[0]: "it is no regular file",
        paths[1]: "it is no regular file",
        paths[2]: "it has 1,099,511,627,776 bytes, more than any record",
    }


def test_a_folder_that_cannot_be_looked_into_is_named(folder, configs):
    # Root may read everything, but no name is as long as this.
    closed = folder / "cache" / "MeasureStep-001-closed"
    closed.symlink_to("n" * 300)
    records, [unreadable] = read_records(folder)
    assert methods(records) == labels(configs)
    assert unreadable.path == closed / DATA
    assert "File name too long" in unreadable.reason


def test_what_is_incomplete_is_told_without_torch_and_tango(folder, configs):
    (result_of(configs[3], folder) / DATA).unlink()
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from academic_pretraining.config import config_from_dict\n"
        "from experiments.workspace import incomplete\n"
        "configs = [config_from_dict(data) for data in json.loads(sys.argv[2])]\n"
        "missing = incomplete(configs, Path(sys.argv[1]))\n"
        "assert not {'tango', 'torch', 'transformers'} & set(sys.modules)\n"
        "print(*map(configs.index, missing))\n"
    )
    written = json.dumps([config_to_dict(config) for config in configs])
    arguments = [sys.executable, "-c", code, str(folder), written]
    reader = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert reader.stdout.split() == ["3"]


def test_a_workspace_that_is_a_file_is_refused(configs, tmp_path):
    (tmp_path / "file").write_text("mine")
    for use in (read_records, lambda workspace: incomplete(configs, workspace)):
        with pytest.raises(InvalidFileError) as caught:
            use(tmp_path / "file")
        assert str(caught.value) == (
            f"the workspace {tmp_path / 'file'} is a file: name a folder with TANGO_WORKSPACE_DIR"
        )
