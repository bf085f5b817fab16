import dataclasses
import json
import math
from typing import Any

import polars as pl
import pytest
from samples import MEASURED, OUT_OF_MEMORY, TIMING

from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import NoResultsError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, MethodSpace, Sharding, method_space
from academic_pretraining.models import MODELS
from academic_pretraining.records import (
    RECORD_VERSION,
    Measurement,
    about,
    config_of,
    is_current,
    to_record,
)
from academic_pretraining.results import SCHEMA, fastest, frame, select
from experiments.identity import cache_key

ONE = Hardware(num_nodes=1, gpus_per_node=1, gpu_type="h200")
TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")
FREE_LUNCH = Method(free_lunch=True)


def record_of(
    method: Method = FREE_LUNCH,
    measurement: Measurement = MEASURED,
    *,
    seconds: float | None = None,
    model: str = "pythia-160m",
    hardware: Hardware = TWO,
    at: float = 0.0,
    versions: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write a record, and read it back as a workspace does."""
    if seconds is not None:
        best = dataclasses.replace(TIMING, step_seconds=seconds)
        measurement = dataclasses.replace(measurement, best=best)
    config = TrainingConfig(hardware=hardware, recipe=MODELS[model], method=method)
    versions = {"torch": "2.13.0"} if versions is None else versions
    record = to_record(config, measurement, versions=versions, measured_at=at)
    return json.loads(json.dumps(record | {"key": cache_key(config)}))


def test_a_record_is_json_and_holds_the_configuration():
    method = Method(free_lunch=True, sharding=Sharding.ZERO_2, offloading=True)
    record = record_of(method, hardware=ONE)
    assert record["version"] == RECORD_VERSION
    assert config_of(record) == TrainingConfig(
        hardware=ONE, recipe=MODELS["pythia-160m"], method=method
    )
    assert record["measurement"]["best"]["samples"] == [[4, 0.54], [8, 0.82]]
    assert record["measurement"]["seconds"] == MEASURED.seconds


def test_a_row_in_full():
    method = Method(free_lunch=True, activation_checkpointing=True, sharding=Sharding.ZERO_2)
    assert frame([record_of(method, at=1.5e9)]).row(0, named=True) == {
        "num_nodes": 1,
        "gpus_per_node": 2,
        "gpu_type": "h200",
        "model": "pythia-160m",
        "free_lunch": True,
        "activation_checkpointing": True,
        "sharding": "zero_2",
        "offloading": False,
        "outcome": "measured",
        "micro_batch_size": 16,
        "grad_acc_steps": 32,
        "global_batch_size": 1024,
        "max_steps": 143_000,
        "units_per_example": 2049,
        "step_seconds": 2.5,
        "step_standard_error": 0.01,
        "step_half_width": pytest.approx(3.182 * 0.01),
        "step_spread": 0.02,
        "micro_step_seconds": 0.07,
        "mfu": 0.4,
        "mfu_of": "989 TFLOP/s (fp16)",
        "ceiling_share": pytest.approx(1024 * 10**12 / 2.5 / 2 / 8e14),
        "numerics": "fp16 parameters",
        "peak_memory_gib": 3.0,
        "compile": "on",
        "kernels": "none",
        "model_flops_per_step": 1024e12,
        "ceiling_flops": 8e14,
        "data_share": 0.01,
        "optimizer_share": 0.03,
        "communication_share": 0.05,
        "other_cpu_share": 0.02,
        "missing_gib": None,
        "restart_seconds": 40.0,
        "save_seconds": 5.0,
        "checkpoint_gib": 2.0,
        "save_peak_gib": 1.0,
        "device_name": "NVIDIA H200",
        "wall_seconds": 90.0,
        "torch": "2.13.0",
        "libraries": "torch 2.13.0",
        "measured_at": 1.5e9,
        "current_recipe": True,
        "unlimited": True,
        "limits": "",
        "company": "",
        "alone": True,
        "current_arguments": True,
        "current_libraries": True,
        "training_days": pytest.approx(2.5 * 143_000 / 86_400),
        "training_days_low": pytest.approx(4.13773 * (1 - math.hypot(0.02, 3.182 * 0.01 / 2.5))),
        "training_days_high": pytest.approx(4.13773 * (1 + math.hypot(0.02, 3.182 * 0.01 / 2.5))),
        "units_per_second": pytest.approx(1024 * 2049 / 2.5),
    }


def test_what_is_missing_in_a_measurement_is_null():
    bare = dataclasses.replace(MEASURED, best=dataclasses.replace(TIMING, mfu=None))
    row = frame([record_of(measurement=bare, versions={})]).row(0, named=True)
    assert (row["mfu"], row["torch"]) == (None, None)
    assert row["step_seconds"] == 2.5


@pytest.mark.parametrize(
    ("freedom", "width"), [(0, 0.0196), (2, 0.04303), (None, 0.04303), (7, 0.02365), (99, 0.01984)]
)
def test_few_repeated_steps_widen_the_interval(freedom, width):
    few = dataclasses.replace(TIMING, step_degrees_of_freedom=freedom)
    older = record_of(measurement=dataclasses.replace(MEASURED, best=few))
    if freedom is None:
        del older["measurement"]["best"]["step_degrees_of_freedom"]
    row = frame([older]).row(0, named=True)
    assert row["step_half_width"] == pytest.approx(width, rel=1e-3)
    high = row["training_days"] * (1 + math.hypot(0.02, row["step_half_width"] / 2.5))
    assert row["training_days_high"] == pytest.approx(high)


def test_an_image_is_one_unit():
    row = frame([record_of(model="vit", seconds=2.0)]).row(0, named=True)
    assert row["units_per_example"] == 1
    assert row["units_per_second"] == 1024 / 2.0
    assert row["training_days"] == pytest.approx(2.0 * 311_948 / 86_400)


def test_a_setting_that_did_not_fit_has_a_row_without_times():
    row = frame([record_of(measurement=OUT_OF_MEMORY)]).row(0, named=True)
    assert row["outcome"] == "out of memory"
    assert row["missing_gib"] == 1.0
    empty = {name for name, value in row.items() if value is None}
    assert empty == {
        *("micro_batch_size", "grad_acc_steps", "global_batch_size"),
        *("step_seconds", "step_standard_error", "step_half_width", "step_spread"),
        *("mfu", "peak_memory_gib"),
        *("training_days", "training_days_low", "training_days_high", "units_per_second"),
        "micro_step_seconds",
        *("ceiling_share", "model_flops_per_step", "data_share", "optimizer_share"),
        *("communication_share", "other_cpu_share"),
    }


@pytest.mark.parametrize("side", ["requested", "free"])
def test_without_both_figures_nothing_is_said_to_be_missing(side):
    unknown = dataclasses.replace(OUT_OF_MEMORY, **{f"out_of_memory_{side}_bytes": None})
    assert frame([record_of(measurement=unknown)])["missing_gib"].to_list() == [None]


@pytest.mark.parametrize("free", [2**31, 2**32])
def test_a_failure_of_nothing_requested_is_not_null(free):
    # Fragmented memory may be free and of no use.
    exact = dataclasses.replace(OUT_OF_MEMORY, out_of_memory_free_bytes=free)
    assert frame([record_of(measurement=exact)])["missing_gib"].to_list() == [0.0]


def test_an_empty_frame_has_the_columns_and_answers():
    empty = frame([])
    names = ("training_days", "training_days_low", "training_days_high", "units_per_second")
    extra = dict.fromkeys(names, pl.Float64) | {"current_libraries": pl.Boolean}
    assert dict(empty.schema) == dict(SCHEMA) | extra
    assert empty.is_empty()
    assert select(empty, TWO, "vit").is_empty()
    assert frame([record_of()]).schema == empty.schema
    assert frame([record_of(measurement=OUT_OF_MEMORY)]).schema == empty.schema


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_the_newest_of_one_setting_counts(order):
    records = [record_of(seconds=s, at=at) for s, at in ((1.0, 10.0), (9.0, 30.0), (5.0, 20.0))]
    rows = frame(records[i] for i in order)
    assert rows["step_seconds"].to_list() == [9.0]


def test_a_newer_failure_to_fit_replaces_a_time():
    old, new = record_of(at=1.0), record_of(measurement=OUT_OF_MEMORY, at=2.0)
    assert frame([new, old])["outcome"].to_list() == ["out of memory"]
    with pytest.raises(NoResultsError):
        fastest(frame([new, old]), TWO, "pythia-160m")


def test_different_settings_are_not_duplicates():
    methods = [
        *(Method(), FREE_LUNCH, Method(free_lunch=True, activation_checkpointing=True)),
        *(Method(free_lunch=True, sharding=s) for s in Sharding if s is not Sharding.NONE),
        Method(free_lunch=True, sharding=Sharding.ZERO_1, offloading=True),
    ]
    records = [record_of(method) for method in methods]
    records += [
        record_of(model="vit"),
        record_of(hardware=ONE),
        record_of(hardware=Hardware(num_nodes=2, gpus_per_node=1, gpu_type="h200")),
        record_of(hardware=Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h100")),
    ]
    assert frame(records).height == len(records) == 13


def test_selecting_keeps_one_hardware_and_model():
    machines = [
        Hardware(num_nodes=n, gpus_per_node=g, gpu_type=t)
        for n in (1, 2)
        for g in (1, 2)
        for t in ("h100", "h200")
    ]
    records = [record_of(hardware=m, model=k) for m in machines for k in ("vit", "pythia-160m")]
    rows = select(frame(records), TWO, "vit")
    names = ["num_nodes", "gpus_per_node", "gpu_type", "model"]
    assert rows.select(names).rows() == [(1, 2, "h200", "vit")]


def test_the_fastest_trains_in_the_fewest_days():
    methods = [m for m in method_space(MethodSpace.ALL) if not m.offloading]
    records = [record_of(m, seconds=abs(i - 5) + 1.0) for i, m in enumerate(methods)]
    records.append(record_of(methods[0], model="vit", seconds=0.1))
    records.append(record_of(methods[0], hardware=ONE, seconds=0.1))
    rows = fastest(frame(records), TWO, "pythia-160m")
    assert rows.height == 1
    winner = rows.row(0, named=True)
    assert winner["step_seconds"] == 1.0
    assert winner["sharding"] == methods[5].sharding
    assert winner["training_days"] == min(frame(records[:-2])["training_days"])


def test_what_did_not_fit_is_never_the_fastest():
    records = [record_of(Method(), OUT_OF_MEMORY), record_of(FREE_LUNCH, seconds=1e9)]
    assert fastest(frame(records), TWO, "pythia-160m")["free_lunch"].to_list() == [True]


@pytest.mark.parametrize(
    "records", [[], [record_of(measurement=OUT_OF_MEMORY)], [record_of(hardware=ONE)]]
)
def test_without_a_time_the_user_is_told_what_to_run(records):
    with pytest.raises(NoResultsError) as caught:
        fastest(frame(records), TWO, "pythia-160m")
    assert str(caught.value) == (
        "no result yet for pythia-160m on 1 x 2 h200: run scripts/benchmark.py with the same flags "
        "first"
    )


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
    row = frame([of_another_recipe(record_of(), **changes)]).row(0, named=True)
    assert row["current_recipe"] is False


@pytest.mark.parametrize("model", MODELS)
def test_each_model_is_current_and_prose_changes_nothing(model):
    record = record_of(model=model)
    reworded = of_another_recipe(
        record_of(model=model), source="s", note="n", parameter_count=1, parameter_count_source="p"
    )
    for one in (record, reworded):
        assert is_current(one["config"]["recipe"])
        assert frame([one])["current_recipe"].to_list() == [True]


@pytest.mark.parametrize("later", ["older recipe", "current recipe"])
def test_an_older_recipe_neither_replaces_nor_wins(later):
    at = 2.0 if later == "older recipe" else 0.5
    old = of_another_recipe(record_of(seconds=0.1, at=at), learning_rate=1.0)
    rows = frame([old, record_of(seconds=3.0, at=1.0)])
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
    other = of_other_arguments(record_of(seconds=0.1, at=at), **changes)
    rows = frame([other, record_of(seconds=3.0, at=1.0)])
    assert dict(rows.select("current_arguments", "step_seconds").rows()) == {True: 3.0, False: 0.1}
    assert fastest(rows, TWO, "pythia-160m")["step_seconds"].to_list() == [3.0]
    with pytest.raises(NoResultsError):
        fastest(frame([other]), TWO, "pythia-160m")


COMPILED_ANEW = [Sharding.ZERO_3, Sharding.FSDP_SHARD_GRAD_OP, Sharding.FSDP_FULL_SHARD]


@pytest.mark.parametrize("at", [0.5, 2.0])
@pytest.mark.parametrize("sharding", COMPILED_ANEW)
def test_results_from_before_recomputed_layers_were_compiled_never_win(sharding, at):
    method = Method(free_lunch=True, activation_checkpointing=True, sharding=sharding)
    old, new = record_of(method, seconds=0.1, at=at), record_of(method, seconds=3.0, at=1.0)
    key = json.loads(old["key"])
    assert key.pop("recomputed_layers") == "compiled"
    old["key"] = json.dumps(key)
    rows = frame([old, new])
    assert dict(rows.select("current_arguments", "step_seconds").rows()) == {True: 3.0, False: 0.1}
    assert fastest(rows, TWO, "pythia-160m")["step_seconds"].to_list() == [3.0]
    with pytest.raises(NoResultsError):
        fastest(frame([old]), TWO, "pythia-160m")


def test_whatever_else_identified_a_result_counts_but_for_versions_and_limits():
    key = json.loads(record_of()["key"])
    for other, current in (
        ({"versions": {"torch": "1"}, "limits": {"timing_seconds": 1}}, True),
        ({"new_entry": 1}, False),
        ({"global_batch_size": 1}, False),
    ):
        rows = frame([record_of() | {"key": json.dumps(key | other)}])
        assert rows["current_arguments"].to_list() == [current]


@pytest.mark.parametrize("key", [None, "", "{", "[]", "{}", '{"arguments": 1}', "[" * 10**5, 1])
def test_a_record_that_does_not_say_its_arguments_never_wins(key):
    assert frame([record_of() | {"key": key}])["current_arguments"].to_list() == [False]
    unnamed = record_of()
    del unnamed["key"]
    assert frame([unnamed])["current_arguments"].to_list() == [False]


def test_records_are_those_about_one_hardware_and_model():
    wanted = record_of(Method())
    others = [record_of(hardware=ONE), record_of(model="vit")]
    assert about([others[0], wanted, others[1]], TWO, "pythia-160m") == [wanted]
    assert about(others, TWO, "pythia-160m") == []


def test_a_record_from_before_the_ceiling_still_has_a_row():
    record = record_of()
    del record["measurement"]["ceiling_flops"]
    for name in ("data_share", "optimizer_share"):
        del record["measurement"]["best"][name]
    row = frame([record]).row(0, named=True)
    assert row["step_seconds"] == 2.5
    assert [row[n] for n in ("ceiling_share", "data_share", "optimizer_share")] == [None] * 3


def test_the_winner_may_be_restricted_to_the_reference():
    quick = record_of(Method(free_lunch=True, sharding=Sharding.ZERO_2), seconds=1.0)
    results = frame([quick, record_of(seconds=2.0)])
    assert fastest(results, TWO, "pythia-160m")["numerics"].item() == "fp16 parameters"
    same = fastest(results, TWO, "pythia-160m", same_numerics=True)
    assert (same["step_seconds"].item(), same["numerics"].item()) == (2.0, "reference")
    with pytest.raises(NoResultsError, match="other numerics than plain data parallelism"):
        fastest(frame([quick]), TWO, "pythia-160m", same_numerics=True)


def test_results_of_other_libraries_are_marked_and_never_win():
    old = record_of(Method(), seconds=1.0, at=1.0, versions={"torch": "2.11.0", "tango": "1"})
    new = record_of(seconds=2.0, at=2.0, versions={"torch": "2.13.0"})
    elsewhere = record_of(model="vit", at=0.5, versions={"torch": "2.11.0"})
    results = frame([old, new, elsewhere])
    marked = {row["libraries"]: row["current_libraries"] for row in results.to_dicts()[1:]}
    assert marked == {"torch 2.11.0": False, "torch 2.13.0": True}
    assert fastest(results, TWO, "pythia-160m")["step_seconds"].item() == 2.0
    assert fastest(results, TWO, "vit")["libraries"].item() == "torch 2.11.0"


def test_results_with_other_kernels_of_the_model_are_marked_and_never_win():
    kernels = {"mamba-ssm": "2.3.2", "causal-conv1d": "1.7.0", "mambapy": "not installed"}
    none = dict.fromkeys(kernels, "not installed")
    # In records of other models they say nothing.
    for model, marked in (("mamba", [False, True]), ("pythia-160m", [True, True])):
        old = record_of(
            Method(), model=model, seconds=1.0, at=1.0, versions={"torch": "2.13.0"} | kernels
        )
        new = record_of(model=model, seconds=2.0, at=2.0, versions={"torch": "2.13.0"} | none)
        results = frame([old, new])
        assert results["current_libraries"].to_list() == marked
        assert fastest(results, TWO, model)["step_seconds"].item() == 1.0 + (model == "mamba")
    assert results["libraries"].to_list() == ["torch 2.13.0"] * 2
    [row] = frame([record_of(model="mamba", versions=kernels)]).to_dicts()
    assert row["libraries"] == "mamba-ssm 2.3.2, causal-conv1d 1.7.0, mambapy not installed"


def test_a_limited_search_stands_in_for_a_whole_one_and_never_before_it():
    limited = record_of(seconds=1.0, at=2.0) | {"limits": {"micro_batch_sizes": [4]}}
    only = fastest(frame([limited]), TWO, "pythia-160m")
    assert (only["step_seconds"].item(), only["unlimited"].item()) == (1.0, False)
    whole = record_of(seconds=2.0, at=1.0)
    for records in ([limited, whole], [whole, limited]):
        [row] = frame(records).to_dicts()
        assert (row["step_seconds"], row["unlimited"]) == (2.0, True)


def test_what_is_asked_for_has_a_row_beside_the_one_before_it():
    whole = record_of(seconds=2.0, at=1.0)
    key = whole["key"][:-1] + ',"limits":{"micro_batch_sizes":[4]}}'
    limited = record_of(seconds=1.0, at=2.0)
    limited |= {"limits": {"micro_batch_sizes": [4]}, "key": key}
    other = record_of(Method(), seconds=3.0, at=3.0)
    for also, shown in (
        ((), [2.0, 3.0]),
        ((key,), [2.0, 1.0, 3.0]),
        ((whole["key"],), [2.0, 3.0]),
        (("unknown",), [2.0, 3.0]),
    ):
        rows = frame([limited, whole, other], also)
        assert rows["step_seconds"].to_list() == shown
        assert rows.schema == frame([]).schema


def test_what_was_measured_beside_others_never_stands_before_what_was_not():
    limited = {"limits": {"timing_seconds": 1.0}}
    alone = record_of(seconds=2.0, at=1.0) | limited
    beside = dataclasses.replace(MEASURED, company="GPU 1 has 20.0 GiB in use")
    beside = record_of(measurement=beside, at=2.0) | limited
    for records in ([alone, beside], [beside, alone]):
        [row] = frame(records).to_dicts()
        assert (row["step_seconds"], row["company"]) == (2.0, "")
    assert frame([beside])["company"].item() == "GPU 1 has 20.0 GiB in use"


def test_a_limited_search_with_current_libraries_stands_before_a_whole_one_with_others():
    whole = record_of(seconds=2.0, at=1.0, versions={"torch": "2.11.0"})
    limited = record_of(seconds=3.0, at=2.0, versions={"torch": "2.13.0"})
    [row] = frame([whole, limited | {"limits": {"timing_seconds": 1.0}}]).to_dicts()
    assert (row["step_seconds"], row["current_libraries"]) == (3.0, True)


def test_results_of_older_libraries_are_named_where_nothing_else_is_left():
    old = record_of(at=1.0, versions={"torch": "2.11.0"})
    new = record_of(Method(), OUT_OF_MEMORY, at=2.0, versions={"torch": "2.13.0"})
    with pytest.raises(NoResultsError, match="is of other library versions than the newest one"):
        fastest(frame([old, new]), TWO, "pythia-160m")


def test_zero_3_that_was_timed_compiled_only_is_marked():
    new = record_of(Method(free_lunch=True, sharding=Sharding.ZERO_3))
    key = json.loads(new["key"])
    assert key.pop("compile") == [False, True]
    old = new | {"key": json.dumps(key)}
    assert frame([old])["current_arguments"].to_list() == [False]
    assert frame([new])["current_arguments"].to_list() == [True]


def test_the_interval_of_zero_3_is_wide():
    [row] = frame([record_of(Method(free_lunch=True, sharding=Sharding.ZERO_3))]).to_dicts()
    half = (row["training_days_high"] - row["training_days_low"]) / 2 / row["training_days"]
    assert half == pytest.approx(math.hypot(0.15, 3.182 * 0.01 / 2.5))
