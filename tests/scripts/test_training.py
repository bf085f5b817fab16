import json
import re
from pathlib import Path

import pytest

SCRIPT = "training.py"
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
    (cli.folder / "args.setting.json").write_text(json.dumps({"model": "pythia-14m"}))
    assert cli.refuses(SCRIPT, *VIT) == (
        "args.json was exported for pythia-14m, but --model-type is vit: give the same model"
    )


def test_a_field_that_training_arguments_lack_is_named(cli):
    (cli.folder / "args.json").write_text('{"seed": 1, "sharpness": 2}')
    assert cli.refuses(SCRIPT, *VIT, torch=True) == (
        "args.json holds 'sharpness', which is no field of TrainingArguments: write the file with "
        "scripts/to_training_arguments.py"
    )


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(cli, steps):
    (cli.folder / "args.json").write_text("{}")
    assert cli.refuses(SCRIPT, *VIT, "--stop-after-steps", steps) == (
        f"--stop-after-steps is {steps}, but must be at least 1"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--stop-after-steps", "few"), "Error parsing --stop-after-steps"),
        (("--launcher.worker-timeout", "long"), "Error parsing --launcher.worker-timeout"),
        (("--launcher.workers-per-host", "all"), "Error parsing --launcher.workers-per-host"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(cli, arguments, text):
    assert text in cli.cannot_parse(SCRIPT, *VIT, *arguments)


def test_the_data_are_to_be_put_in_one_marked_place():
    source = (Path(__file__).resolve().parents[2] / "scripts" / SCRIPT).read_text()
    assert source.count("YOUR DATA") == 2
    assert '"""YOUR DATA: ' in source
