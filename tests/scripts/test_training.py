import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
from transformers import Trainer

from academic_pretraining.benchmarking.garbage import FreesCompilerGarbage
from academic_pretraining.benchmarking.timing import StepTimer

SCRIPT = "training.py"
SOURCE = Path(__file__).resolve().parents[2] / "scripts" / SCRIPT
ON_CPU = {"num_nodes": 1, "gpus_per_node": 1, "gpu_type": "cpu"}
ON_TWO = {"num_nodes": 1, "gpus_per_node": 2, "gpu_type": "a100"}
WRITE = "write one with scripts/to_training_arguments.py"
VIT = ("--output-dir", "run", "--model-type", "vit", "--training-arguments", "args.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, r"\[Errno 2\] No such file or directory: 'args\.json'"),
        (b"", r"Expecting value: line 1 column 1 \(char 0\)"),
        (b'{"seed": 4', r"Expecting ',' delimiter: line 1 column 11 \(char 10\)"),
        (b"\xff\xfe", r"'utf-8' codec can't decode byte 0xff in position 0: .+"),
        (b"torch", r"Expecting value: line 1 column 1 \(char 0\)"),
    ],
    ids=["missing", "empty", "truncated", "binary", "no JSON"],
)
def test_arguments_that_cannot_be_read_are_refused(cli, content, why):
    if content is not None:
        (cli.folder / "args.json").write_bytes(content)
    message = cli.refuses(SCRIPT, *VIT)
    assert re.fullmatch(rf"args\.json is not a readable JSON file \({why}\): {WRITE}", message)


def test_a_folder_is_no_file(cli):
    (cli.folder / "args.json").mkdir()
    message = cli.refuses(SCRIPT, *VIT)
    assert message.startswith("args.json is not a readable JSON file ([Errno 21] Is a directory")


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"'])
@pytest.mark.parametrize("name", ["args.json", "args.setting.json"])
def test_what_is_no_object_is_refused(cli, content, name):
    (cli.folder / "args.json").write_text("{}")
    (cli.folder / name).write_text(content)
    assert cli.refuses(SCRIPT, *VIT) == f"{name} holds no JSON object: {WRITE}"


def test_the_other_file_must_be_readable_too(cli):
    (cli.folder / "args.json").write_text("{}")
    (cli.folder / "args.setting.json").write_text("{")
    message = cli.refuses(SCRIPT, *VIT)
    assert message.startswith("args.setting.json is not a readable JSON file (")


def test_another_model_than_the_exported_one_is_refused(cli):
    (cli.folder / "args.json").write_text("{}")
    (cli.folder / "args.setting.json").write_text(
        json.dumps({"model": "pythia-14m", "hardware": ON_CPU})
    )
    assert cli.refuses(SCRIPT, *VIT) == (
        "args.json was exported for pythia-14m, but --model-type is vit: give the same model"
    )


def test_a_field_that_training_arguments_lack_is_named(cli):
    (cli.folder / "args.json").write_text('{"seed": 1, "sharpness": 2}')
    assert cli.refuses(SCRIPT, *VIT, torch=True) == (
        "args.json holds 'sharpness', which is no field of TrainingArguments: write the file with "
        "scripts/to_training_arguments.py"
    )


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"seed": "many"}, "seed"),
        *(
            pytest.param({name: value}, name, marks=pytest.mark.thorough)
            for name, value in (
                ("learning_rate", None),
                ("learning_rate", "1e-3"),
                ("per_device_train_batch_size", [8]),
                ("max_steps", True),
            )
        ),
    ],
    ids=str,
)
def test_a_field_that_must_be_a_number_is_named(cli, fields, name):
    (cli.folder / "args.json").write_text(json.dumps(fields))
    assert cli.refuses(SCRIPT, *VIT, torch=True) == (
        f"args.json says {name} is {fields[name]!r}, but it must be a number: write the file with "
        "scripts/to_training_arguments.py"
    )


@pytest.mark.parametrize(
    "setting",
    [
        *({}, {"hardware": None}, {"model": "vit", "hardware": {}}, {"hardware": [1, 2, "a100"]}),
        {"hardware": {"num_nodes": 1, "gpu_type": "a100"}},
    ],
    ids=str,
)
def test_a_setting_without_its_hardware_is_refused(cli, setting):
    (cli.folder / "args.json").write_text("{}")
    (cli.folder / "args.setting.json").write_text(json.dumps(setting))
    assert cli.refuses(SCRIPT, *VIT) == (
        f"args.setting.json does not say for which hardware it is: {WRITE}"
    )


@pytest.mark.parametrize("name", ["gpus_per_node", "gpu_type"])
@pytest.mark.parametrize("value", [None, "two", []], ids=str)
def test_hardware_of_another_kind_is_refused(cli, name, value):
    (cli.folder / "args.json").write_text("{}")
    (cli.folder / "args.setting.json").write_text(json.dumps({"hardware": ON_TWO | {name: value}}))
    assert cli.refuses(SCRIPT, *VIT)


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_setting_for_gpus_is_refused_without_them(cli, nodes):
    (cli.folder / "args.json").write_text("{}")
    (cli.folder / "args.setting.json").write_text(
        json.dumps({"hardware": ON_TWO | {"num_nodes": nodes}})
    )
    assert cli.refuses(SCRIPT, *VIT).startswith(
        "--gpu-type a100 --gpus-per-node 2 was given, but this machine has no GPU: "
    )


def test_a_setting_for_other_gpus_is_refused(cli, see_gpus):
    see_gpus("NVIDIA H200", "NVIDIA H200")
    (cli.folder / "args.json").write_text("{}")
    (cli.folder / "args.setting.json").write_text(json.dumps({"hardware": ON_TWO}))
    assert cli.refuses(SCRIPT, *VIT).startswith(
        "--gpu-type a100 --gpus-per-node 2 was given, but this machine has 'NVIDIA H200': "
    )


@pytest.mark.parametrize("workers", [0, -1, -8])
def test_fewer_than_one_worker_is_refused(cli, workers):
    (cli.folder / "args.json").write_text("{}")
    assert cli.refuses(SCRIPT, *VIT, "--launcher.workers-per-host", workers) == (
        f"--launcher.workers-per-host is {workers}, but must be at least 1"
    )


@pytest.mark.parametrize("there", [(), ("run",), ("run/logs", "run/speed.json")], ids=str)
def test_there_is_nothing_to_resume_without_a_checkpoint(cli, there):
    (cli.folder / "args.json").write_text("{}")
    for name in there:
        (cli.folder / name).mkdir(parents=True)
    assert cli.refuses(SCRIPT, *VIT, "--resume") == (
        "--resume was given, but run holds no checkpoint: leave it out to begin"
    )


@pytest.mark.parametrize("folder", ["file", "file/run"])
def test_an_output_folder_that_is_a_file_is_refused(cli, folder):
    (cli.folder / "args.json").write_text("{}")
    (cli.folder / "file").write_text("mine")
    message = cli.refuses(SCRIPT, "--output-dir", folder, *VIT[2:])
    assert message == (
        f"{folder} cannot be a folder for checkpoints, for it is a file or below one: name another"
    )


def test_a_copy_alone_in_a_project_runs(cli):
    folder = cli.folder / "project"
    folder.mkdir()
    shutil.copy(SOURCE, folder / "mine.py")
    answer = cli(str(folder / "mine.py"), "--help")
    assert (answer.status, answer.err) == (0, "")
    assert "--training-arguments" in answer.out
    message = cli.refuses(str(folder / "mine.py"), *VIT)
    assert message.startswith("args.json is not a readable JSON file (")


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(cli, steps):
    (cli.folder / "args.json").write_text("{}")
    assert cli.refuses(SCRIPT, *VIT, "--stop-after-steps", steps) == (
        f"--stop-after-steps is {steps}, but must be at least 1"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--stop-after-steps", "few"), "--stop-after-steps: "),
        (("--launcher.worker-timeout", "long"), "--launcher.worker-timeout: "),
        (("--launcher.workers-per-host", "all"), "--launcher.workers-per-host: "),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(cli, arguments, text):
    assert text in cli.refuses(SCRIPT, *VIT, *arguments)


def test_memory_is_freed_before_a_step_s_end_is_timed(tmp_path, monkeypatch):
    made = {}

    class Made(Exception):  # noqa: N818
        pass

    def make(self, **how):
        made.update(how)
        raise Made

    monkeypatch.setattr(Trainer, "__init__", make)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    fields = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    train = runpy.run_path(str(SOURCE))["train"]
    with pytest.raises(Made):
        train(fields, "pythia-14m", {}, source=tmp_path / "args.json")
    first, *others = made["callbacks"]
    assert isinstance(first, FreesCompilerGarbage)
    assert [timer.warm_up_steps for timer in others if isinstance(timer, StepTimer)] == [
        first.steps
    ]


def test_the_data_are_to_be_put_in_one_marked_place():
    source = SOURCE.read_text()
    assert source.count("YOUR DATA") == 2
    assert '"""YOUR DATA: ' in source
