"""Results that somebody has broken: they are named, left out and left as they are."""

import contextlib
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from exports import BREAKS, many
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import BATCH, MODEL, TARGET, InProcess, in_process, made_up_record

from academic_pretraining.checks import check_record
from academic_pretraining.config import config_from_dict
from academic_pretraining.errors import AcademicPretrainingError
from academic_pretraining.records import config_of
from academic_pretraining.results import frame

GOOD = made_up_record()
CHOSEN = (*TARGET, *MODEL)
EXPORT = ("to_training_arguments.py", "--output", "new.json", *CHOSEN)
# What a result is needed for.
ASK: dict[str, tuple[str, ...]] = {
    "optimal": ("print_optimal_config.py", *CHOSEN),
    "whole run": (
        *("print_optimal_config.py", *CHOSEN, "--save-every-steps", "1000"),
        *("--time-limit-hours", "24"),
        *("--evaluate-every-steps", "1000", "--evaluation-examples", "1000"),
    ),
    "export": (*EXPORT, "--optimal"),
}
LIST = ("benchmark.py", *CHOSEN, "--detail", "--cmd", "print-results")


@pytest.fixture
def place(tmp_path) -> InProcess:
    return in_process(tmp_path)


def names_and_refuses(place: InProcess, command: tuple[str, ...], *contents: bytes) -> list[str]:
    """Check that results are named and the question refused; give why each is left out."""
    paths = place.remember(*contents)
    before = place.files()
    status, out, err = place.run(*command)
    assert (status, out) == (2, "")
    assert place.files() == before
    *warnings, error = err.splitlines()
    assert err.replace("\n", "").isprintable()
    assert error.startswith("error: no result yet for pythia-160m on 1 x 2 a100: ")
    reasons = []
    for path, warning in zip(paths, warnings, strict=True):
        start, _, reason = warning.partition(" is left out: ")
        assert start == f"warning: {path}"
        reasons.append(reason)
    assert all(reasons)
    return reasons


@pytest.mark.parametrize("question", ASK)
@pytest.mark.parametrize("how", BREAKS)
@settings(many, max_examples=10)
@given(at=st.integers(0, 10**6))
def test_a_result_that_is_damaged_anywhere_is_named(place, question, how, at):
    # A mark that its key lacks leaves JSON, and a key of no known arguments.
    content = json.dumps(GOOD | {"key": "a key"}).encode()
    names_and_refuses(place, ASK[question], BREAKS[how](content, at))


@pytest.mark.parametrize("question", ASK)
@pytest.mark.parametrize("key", ["a key", GOOD["key"][:-1], GOOD["key"].replace("fused", "")])
def test_a_result_with_a_damaged_key_is_marked_and_never_wins(place, question, key):
    place.remember(json.dumps(GOOD | {"key": key}).encode())
    status, out, err = place.run(*ASK[question])
    assert (status, out) == (2, "")
    assert err.startswith("error: no result yet for pythia-160m on 1 x 2 a100: ")
    status, out, err = place.run(*LIST)
    assert (status, err) == (0, "")
    assert "(other" in out


NO_RECORD: dict[str, bytes] = {
    **{text: text.encode() for text in ("", "[]", "null", "3", "{}", '{"version": 2}')},
    **{text: text.encode() for text in ('{"version": 1}', '{"version": null}', '{"version": [1]}')},
    "deep": b"[" * 100_000,
    "deep enough": b'{"version": ' + b"[" * 900 + b"]" * 900 + b"}",
    "NaN": json.dumps(GOOD | {"measured_at": float("nan")}).encode(),
    "infinity": json.dumps(GOOD | {"measured_at": float("inf")}).encode(),
    "twice": b'{"version": 1, ' + json.dumps(GOOD).encode()[1:],
    "key": json.dumps(GOOD | {"key": [1]}).encode(),
    "pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00}\x94.",
}


@pytest.mark.parametrize("question", ASK)
@pytest.mark.parametrize("content", NO_RECORD)
def test_what_is_no_record_is_named(place, question, content):
    names_and_refuses(place, ASK[question], NO_RECORD[content])


@pytest.mark.parametrize("question", ASK)
@pytest.mark.parametrize("part", [("best",), ("timings", 0)], ids=str)
@pytest.mark.parametrize("name", ["global_batch_size", "micro_batch_size"])
def test_a_batch_that_is_not_that_of_its_plan_is_named(place, question, part, name):
    content = json.dumps(changed(("measurement", *part, name), 1)).encode()
    [reason] = names_and_refuses(place, ASK[question], content)
    assert "global_batch_size is " in reason


def leaves(part: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """List where something stands in a record."""
    if path:
        yield path
    inside = (
        part if isinstance(part, dict) else dict(enumerate(part if isinstance(part, list) else ()))
    )
    for name, inner in inside.items():
        yield from leaves(inner, *path, name)


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    record = copy.deepcopy(GOOD)
    inner: Any = record
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return record


PLACES = list(leaves(GOOD))
GONE = "gone"
scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.integers(10**18, 10**400), st.floats()),
    *(st.text(max_size=8), st.sampled_from(["[/x]", "[bold", "\x1b[2J", "zero_3", "measured"])),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("command", [*ASK.values(), LIST, (*EXPORT, *BATCH)], ids=" ".join)
@many
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), anything), min_size=1, max_size=2))
def test_whatever_a_result_says_there_is_an_answer(tmp_path, command, changes):
    (tmp_path / "place").mkdir(exist_ok=True)
    place = InProcess(folder=tmp_path / "place", workspace=tmp_path / "workspace")
    record = GOOD
    for path, value in changes:
        record = changed(path, value)
    [path] = place.remember(json.dumps(record).encode())
    content = path.read_bytes()
    status, out, err = place.run(*command)
    assert path.read_bytes() == content
    assert "Traceback" not in err
    if status == 2:
        assert out == ""
        assert err.splitlines()[-1].startswith("error: ")
        assert not list(place.folder.iterdir())
    else:
        assert status == 0
    for new in place.folder.iterdir():
        new.unlink()


# What is plain text or a number in every record, beside what a newer recipe may change.
NEEDED = [
    path
    for path in PLACES
    if path[0] in ("measurement", "measured_at", "config")
    and path[:2] != ("config", "recipe")
    and not {"batch_tolerance", "memory_ramp", "samples", "launch"} & {*path}
    and not {"compile_error", "save_error", "communication_error", "out_of_memory_cause"} & {*path}
]


@pytest.mark.parametrize("path", NEEDED, ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("value", [{"zz": 1}, [[]], "\x1b[31m\n", -(10**40)], ids=repr)
def test_what_cannot_stand_in_a_record_is_named(place, path, value):
    content = json.dumps(changed(path, value)).encode()
    [reason] = names_and_refuses(place, ASK["optimal"], content)
    assert reason.startswith("broken record: ")


@pytest.mark.parametrize("question", ASK)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(
            (("config", "method", name), value)
            for name in GOOD["config"]["method"]
            for value in (None, GONE)
        ),
        *((("config", "recipe", name), 10**20) for name in ("max_steps", "sequence_length")),
    ],
    ids=str,
)
def test_a_setting_that_is_not_whole_hides_no_other_result(place, question, path, value):
    bad = changed(path, value)
    if value is GONE:
        del bad["config"]["method"][path[-1]]
    [reason] = names_and_refuses(place, ASK[question], json.dumps(bad).encode())
    assert reason.startswith("broken record: ")
    place.remember(json.dumps(GOOD).encode(), json.dumps(bad).encode())
    status, out, err = place.run(*LIST)
    assert (status, len(err.splitlines())) == (0, 1)
    assert "pythia-160m" in out


@pytest.mark.parametrize("value", ["[/x]", "[bold", "[red]x[/red]", "[link=file:///]x"])
@pytest.mark.parametrize("name", ["compile", "kernels", "device_name"])
def test_text_of_a_result_is_shown_as_it_is(place, name, value):
    place.remember(json.dumps(changed(("measurement", name), value)).encode())
    status, out, err = place.run(*LIST)
    assert (status, err) == (0, "")
    if name == "compile":
        assert value in out


def test_broken_results_do_not_hide_the_good_one(place):
    paths = place.remember(json.dumps(GOOD).encode(), b"{", b"\xff", b"[]")
    before = place.files()
    for command in (ASK["optimal"], LIST):
        status, out, err = place.run(*command)
        assert status == 0
        assert "pythia-160m" in out
        warnings = err.splitlines()
        for path, warning in zip(paths[1:], warnings, strict=True):
            assert warning.startswith(f"warning: {path} is left out: ")
    assert place.files() == before


@settings(many, max_examples=300)
@given(path=st.sampled_from([path for path in PLACES if path[0] == "config"]), value=anything)
def test_reading_a_setting_raises_nothing_but_what_readers_catch(path, value):
    record = changed(path, value)
    try:
        config = config_of(record)
    except (ValueError, AcademicPretrainingError):
        with pytest.raises(Exception):  # noqa: B017, PT011, whatever Python raises inside
            config_from_dict(record["config"])
    else:
        assert config.plans()


@settings(many, max_examples=300)
@given(path=st.sampled_from(PLACES), value=anything)
def test_checking_a_record_raises_nothing_but_what_readers_catch(path, value):
    record = changed(path, value)
    with contextlib.suppress(ValueError):
        check_record(record)
        assert frame([record]).height == 1
