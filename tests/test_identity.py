"""Which results are still of what would be measured now."""

import json
from typing import Any

import pytest
from samples import TWO, kept_record

from academic_pretraining.errors import NoResultsError
from academic_pretraining.identity import is_current
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.results import fastest, frame


def of_another_recipe(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Write a record as a toolkit with another recipe would have."""
    record["config"]["recipe"] |= changes
    return record


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1.0},
        {"max_steps": 1},
        {"global_batch_size": 512},
        {"architecture": {}},
        {"name": "pythia-15m"},
        {"kernel_packages": ["flash-attn"]},
        {"new_field": None},
    ],
    ids=str,
)
def test_another_recipe_is_not_the_current_one(changes):
    row = frame([of_another_recipe(kept_record(), **changes)]).row(0, named=True)
    assert row["current_recipe"] is False


@pytest.mark.parametrize("model", MODELS)
def test_each_model_is_current_and_prose_changes_nothing(model):
    record = kept_record(model=model)
    reworded = of_another_recipe(
        kept_record(model=model),
        source="s",
        note="n",
        parameter_count=1,
        parameter_count_source="p",
    )
    for one in (record, reworded):
        assert is_current(one["config"]["recipe"])
        assert frame([one])["current_recipe"].to_list() == [True]


@pytest.mark.parametrize("later", ["older recipe", "current recipe"])
def test_an_older_recipe_neither_replaces_nor_wins(later):
    at = 2.0 if later == "older recipe" else 0.5
    old = of_another_recipe(kept_record(seconds=0.1, at=at), learning_rate=1.0)
    rows = frame([old, kept_record(seconds=3.0, at=1.0)])
    assert dict(rows.select("current_recipe", "step_seconds").rows()) == {True: 3.0, False: 0.1}
    assert fastest(rows, TWO, "pythia-160m")["step_seconds"].to_list() == [3.0]
    with pytest.raises(NoResultsError):
        fastest(frame([old]), TWO, "pythia-160m")


def of_other_arguments(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    key = json.loads(record["key"])
    return record | {"key": json.dumps(key | {"arguments": key["arguments"] | changes})}


@pytest.mark.parametrize("at", [0.5, 2.0])
@pytest.mark.parametrize("changes", [{"optim": "sgd"}, {"deepspeed": {}}, {"new_field": None}])
def test_other_training_arguments_are_marked_and_never_win(at, changes):
    other = of_other_arguments(kept_record(seconds=0.1, at=at), **changes)
    rows = frame([other, kept_record(seconds=3.0, at=1.0)])
    assert dict(rows.select("current_arguments", "step_seconds").rows()) == {True: 3.0, False: 0.1}
    assert fastest(rows, TWO, "pythia-160m")["step_seconds"].to_list() == [3.0]
    with pytest.raises(NoResultsError):
        fastest(frame([other]), TWO, "pythia-160m")


COMPILED_ANEW = [Sharding.ZERO_3, Sharding.FSDP_SHARD_GRAD_OP, Sharding.FSDP_FULL_SHARD]


@pytest.mark.parametrize("at", [0.5, 2.0])
@pytest.mark.parametrize("sharding", COMPILED_ANEW)
def test_results_from_before_recomputed_layers_were_compiled_never_win(sharding, at):
    method = Method(free_lunch=True, activation_checkpointing=True, sharding=sharding)
    old, new = kept_record(method, seconds=0.1, at=at), kept_record(method, seconds=3.0, at=1.0)
    key = json.loads(old["key"])
    assert key.pop("recomputed_layers") == "compiled"
    old["key"] = json.dumps(key)
    rows = frame([old, new])
    assert dict(rows.select("current_arguments", "step_seconds").rows()) == {True: 3.0, False: 0.1}
    assert fastest(rows, TWO, "pythia-160m")["step_seconds"].to_list() == [3.0]
    with pytest.raises(NoResultsError):
        fastest(frame([old]), TWO, "pythia-160m")


def test_whatever_else_identified_a_result_counts_but_for_versions_and_limits():
    key = json.loads(kept_record()["key"])
    for other, current in (
        ({"versions": {"torch": "1"}, "limits": {"timing_seconds": 1}}, True),
        ({"new_entry": 1}, False),
        ({"global_batch_size": 1}, False),
    ):
        rows = frame([kept_record() | {"key": json.dumps(key | other)}])
        assert rows["current_arguments"].to_list() == [current]


@pytest.mark.parametrize("key", [None, "", "{", "[]", "{}", '{"arguments": 1}', "[" * 10**5, 1])
def test_a_record_that_does_not_say_its_arguments_never_wins(key):
    assert frame([kept_record() | {"key": key}])["current_arguments"].to_list() == [False]
    unnamed = kept_record()
    del unnamed["key"]
    assert frame([unnamed])["current_arguments"].to_list() == [False]
