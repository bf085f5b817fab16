"""Exported files that somebody has damaged: training.py and verify.py refuse them in one line."""

import json
import pickle

import pytest
from exports import BREAKS, FILES, READERS, Exported, many
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import COMMANDS, Accepted, furnished

every_reader = pytest.mark.parametrize("script", READERS)
every_file = pytest.mark.parametrize("name", FILES)


@pytest.fixture
def exported(tmp_path) -> Exported:
    return Exported(furnished(tmp_path))


DEEP = 100_000
NO_OBJECT: dict[str, bytes] = {
    **{text: text.encode() for text in ("", " ", "[]", "null", "true", "3", '"text"', "NaN", "{")},
    "two objects": b"{}{}",
    "trailing": b'{"seed": 1} // one',
    "single quotes": b"{'seed': 1}",
    "trailing comma": b'{"seed": 1,}',
    "bare name": b"{seed: 1}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "Latin-1": '{"run_name": "\u00e9"}'.encode("latin-1"),
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a": ' * DEEP + b"1" + b"}" * DEEP,
    "a deep list inside": b'{"seed": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "pickle": pickle.dumps({"seed": 1}),
    "YAML": b"seed: !!python/object/apply:os.system ['true']\n",
    "NaN inside": b'{"seed": NaN}',
    "infinity": b'{"learning_rate": Infinity}',
    "minus infinity": b'{"learning_rate": -Infinity}',
    "too large a number": b'{"learning_rate": 1e999}',
    "too many digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "a name twice": b'{"seed": 1, "seed": 2}',
    "a name twice inside": b'{"lr_scheduler_kwargs": {"a": 1, "a": 1}}',
    "newline in text": b'{"run_name": "a\nb"}',
    "zero byte": b'{"seed": 1}\0',
}


@every_reader
@every_file
@pytest.mark.parametrize("content", NO_OBJECT)
def test_what_is_no_json_object_is_refused(exported, script, name, content):
    exported.write_one(name, NO_OBJECT[content])
    said = exported.place.refuses(script, *COMMANDS[script])
    assert said.startswith(f"error: {name} ")
    assert said.endswith(": write one with scripts/to_training_arguments.py\n")


@every_file
@pytest.mark.parametrize("how", BREAKS)
@settings(many, max_examples=25)
@given(at=st.integers(0, 10**6), script=st.sampled_from(READERS))
def test_a_file_that_is_damaged_anywhere_is_refused(exported, name, how, at, script):
    exported.write_one(name, BREAKS[how](exported.good[name], at))
    said = exported.place.refuses(script, *COMMANDS[script])
    assert said.startswith(f"error: {name} is not a readable JSON file (")


@every_reader
@every_file
@many
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1))
def test_changed_bytes_are_refused_in_a_line_or_are_harmless(exported, script, name, changes):
    content = bytearray(exported.good[name])
    for at, byte in changes:
        content[at % len(content)] = byte
    exported.write_one(name, bytes(content))
    before = exported.place.files()
    try:
        exported.place.refuses(script, *COMMANDS[script])
    except Accepted:
        # Some digit or name is another one now, such as another seed.
        assert exported.place.files() == before
        json.loads(content)


def test_what_is_accepted_is_what_was_exported(exported):
    for script in READERS:
        exported.write()
        with pytest.raises(Accepted):
            exported.place.run(script, *COMMANDS[script])
    assert {path.name for path in exported.place.folder.iterdir()} == set(FILES)
