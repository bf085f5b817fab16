"""The frame of all results: which of a setting counts, and which setting wins."""

import dataclasses
import json
import math

import polars as pl
import pytest
from samples import FREE_LUNCH, MEASURED, ONE, OUT_OF_MEMORY, TWO, kept_record

from academic_pretraining.errors import NoResultsError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, MethodSpace, Sharding, method_space
from academic_pretraining.results import SCHEMA, fastest, frame, leaders, select


def test_an_empty_frame_has_the_columns_and_answers():
    empty = frame([])
    names = ("training_days", "training_days_low", "training_days_high", "units_per_second")
    extra = dict.fromkeys(names, pl.Float64) | {"current_libraries": pl.Boolean}
    assert dict(empty.schema) == dict(SCHEMA) | extra
    assert empty.is_empty()
    assert select(empty, TWO, "vit").is_empty()
    assert frame([kept_record()]).schema == empty.schema
    assert frame([kept_record(measurement=OUT_OF_MEMORY)]).schema == empty.schema


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_the_newest_of_one_setting_counts(order):
    records = [kept_record(seconds=s, at=at) for s, at in ((1.0, 10.0), (9.0, 30.0), (5.0, 20.0))]
    rows = frame(records[i] for i in order)
    assert rows["step_seconds"].to_list() == [9.0]


def test_a_newer_failure_to_fit_replaces_a_time():
    old, new = kept_record(at=1.0), kept_record(measurement=OUT_OF_MEMORY, at=2.0)
    assert frame([new, old])["outcome"].to_list() == ["out of memory"]
    with pytest.raises(NoResultsError):
        fastest(frame([new, old]), TWO, "pythia-160m")


def test_different_settings_are_not_duplicates():
    methods = [
        *(Method(), FREE_LUNCH, Method(free_lunch=True, activation_checkpointing=True)),
        *(Method(free_lunch=True, sharding=s) for s in Sharding if s is not Sharding.NONE),
        Method(free_lunch=True, sharding=Sharding.ZERO_1, offloading=True),
    ]
    records = [kept_record(method) for method in methods]
    records += [
        kept_record(model="vit"),
        kept_record(hardware=ONE),
        kept_record(hardware=Hardware(num_nodes=2, gpus_per_node=1, gpu_type="h200")),
        kept_record(hardware=Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h100")),
    ]
    assert frame(records).height == len(records) == 13


def test_selecting_keeps_one_hardware_and_model():
    machines = [
        Hardware(num_nodes=n, gpus_per_node=g, gpu_type=t)
        for n in (1, 2)
        for g in (1, 2)
        for t in ("h100", "h200")
    ]
    records = [kept_record(hardware=m, model=k) for m in machines for k in ("vit", "pythia-160m")]
    rows = select(frame(records), TWO, "vit")
    names = ["num_nodes", "gpus_per_node", "gpu_type", "model"]
    assert rows.select(names).rows() == [(1, 2, "h200", "vit")]


def test_the_fastest_trains_in_the_fewest_days():
    methods = [m for m in method_space(MethodSpace.ALL) if not m.offloading]
    records = [kept_record(m, seconds=abs(i - 5) + 1.0) for i, m in enumerate(methods)]
    records.append(kept_record(methods[0], model="vit", seconds=0.1))
    records.append(kept_record(methods[0], hardware=ONE, seconds=0.1))
    rows = fastest(frame(records), TWO, "pythia-160m")
    assert rows.height == 1
    winner = rows.row(0, named=True)
    assert winner["step_seconds"] == 1.0
    assert winner["sharding"] == methods[5].sharding
    assert winner["training_days"] == min(frame(records[:-2])["training_days"])


def test_what_did_not_fit_is_never_the_fastest():
    records = [kept_record(Method(), OUT_OF_MEMORY), kept_record(FREE_LUNCH, seconds=1e9)]
    assert fastest(frame(records), TWO, "pythia-160m")["free_lunch"].to_list() == [True]


@pytest.mark.parametrize(
    "records", [[], [kept_record(measurement=OUT_OF_MEMORY)], [kept_record(hardware=ONE)]]
)
def test_without_a_time_the_user_is_told_what_to_run(records):
    with pytest.raises(NoResultsError) as caught:
        fastest(frame(records), TWO, "pythia-160m")
    assert str(caught.value) == (
        "no result yet for pythia-160m on 1 x 2 h200: run scripts/benchmark.py with the same flags "
        "first"
    )


def test_the_winner_may_be_restricted_to_the_reference():
    quick = kept_record(Method(free_lunch=True, sharding=Sharding.ZERO_2), seconds=1.0)
    results = frame([quick, kept_record(seconds=2.0)])
    assert fastest(results, TWO, "pythia-160m")["numerics"].item() == "fp16 parameters"
    same = fastest(results, TWO, "pythia-160m", same_numerics=True)
    assert (same["step_seconds"].item(), same["numerics"].item()) == (2.0, "reference")
    with pytest.raises(NoResultsError, match="other numerics than plain data parallelism"):
        fastest(frame([quick]), TWO, "pythia-160m", same_numerics=True)


def test_results_of_other_libraries_are_marked_and_never_win():
    old = kept_record(Method(), seconds=1.0, at=1.0, versions={"torch": "2.11.0", "tango": "1"})
    new = kept_record(seconds=2.0, at=2.0, versions={"torch": "2.13.0"})
    elsewhere = kept_record(model="vit", at=0.5, versions={"torch": "2.11.0"})
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
        old = kept_record(
            Method(), model=model, seconds=1.0, at=1.0, versions={"torch": "2.13.0"} | kernels
        )
        new = kept_record(model=model, seconds=2.0, at=2.0, versions={"torch": "2.13.0"} | none)
        results = frame([old, new])
        assert results["current_libraries"].to_list() == marked
        assert fastest(results, TWO, model)["step_seconds"].item() == 1.0 + (model == "mamba")
    assert results["libraries"].to_list() == ["torch 2.13.0"] * 2
    [row] = frame([kept_record(model="mamba", versions=kernels)]).to_dicts()
    assert row["libraries"] == "mamba-ssm 2.3.2, causal-conv1d 1.7.0, mambapy not installed"


def test_a_limited_search_stands_in_for_a_whole_one_and_never_before_it():
    limited = kept_record(seconds=1.0, at=2.0) | {"limits": {"micro_batch_sizes": [4]}}
    only = fastest(frame([limited]), TWO, "pythia-160m")
    assert (only["step_seconds"].item(), only["unlimited"].item()) == (1.0, False)
    whole = kept_record(seconds=2.0, at=1.0)
    for records in ([limited, whole], [whole, limited]):
        [row] = frame(records).to_dicts()
        assert (row["step_seconds"], row["unlimited"]) == (2.0, True)


def test_what_is_asked_for_has_a_row_beside_the_one_before_it():
    whole = kept_record(seconds=2.0, at=1.0)
    key = whole["key"][:-1] + ',"limits":{"micro_batch_sizes":[4]}}'
    limited = kept_record(seconds=1.0, at=2.0)
    limited |= {"limits": {"micro_batch_sizes": [4]}, "key": key}
    other = kept_record(Method(), seconds=3.0, at=3.0)
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
    alone = kept_record(seconds=2.0, at=1.0) | limited
    beside = dataclasses.replace(MEASURED, company="GPU 1 has 20.0 GiB in use")
    beside = kept_record(measurement=beside, at=2.0) | limited
    for records in ([alone, beside], [beside, alone]):
        [row] = frame(records).to_dicts()
        assert (row["step_seconds"], row["company"]) == (2.0, "")
    assert frame([beside])["company"].item() == "GPU 1 has 20.0 GiB in use"


def test_a_limited_search_with_current_libraries_stands_before_a_whole_one_with_others():
    whole = kept_record(seconds=2.0, at=1.0, versions={"torch": "2.11.0"})
    limited = kept_record(seconds=3.0, at=2.0, versions={"torch": "2.13.0"})
    [row] = frame([whole, limited | {"limits": {"timing_seconds": 1.0}}]).to_dicts()
    assert (row["step_seconds"], row["current_libraries"]) == (3.0, True)


def test_results_of_older_libraries_are_named_where_nothing_else_is_left():
    old = kept_record(at=1.0, versions={"torch": "2.11.0"})
    new = kept_record(Method(), OUT_OF_MEMORY, at=2.0, versions={"torch": "2.13.0"})
    with pytest.raises(NoResultsError, match="is of other library versions than the newest one"):
        fastest(frame([old, new]), TWO, "pythia-160m")


def test_zero_3_that_was_timed_compiled_only_is_marked():
    new = kept_record(Method(free_lunch=True, sharding=Sharding.ZERO_3))
    key = json.loads(new["key"])
    assert key.pop("compile") == [False, True]
    old = new | {"key": json.dumps(key)}
    assert frame([old])["current_arguments"].to_list() == [False]
    assert frame([new])["current_arguments"].to_list() == [True]


def test_the_interval_of_zero_3_is_wide():
    [row] = frame([kept_record(Method(free_lunch=True, sharding=Sharding.ZERO_3))]).to_dicts()
    half = (row["training_days_high"] - row["training_days_low"]) / 2 / row["training_days"]
    assert half == pytest.approx(math.hypot(0.15, 3.182 * 0.01 / 2.5))


def test_what_is_apart_by_less_than_is_known_leads_together():
    # Intervals of 2.5% each, and of 15% for ZeRO-3.
    seconds = {
        Method(): 3.0,
        FREE_LUNCH: 2.0,
        Method(free_lunch=True, activation_checkpointing=True): 2.07,
        Method(free_lunch=True, sharding=Sharding.ZERO_1): 2.08,
        Method(free_lunch=True, sharding=Sharding.ZERO_3): 2.3,
        Method(free_lunch=True, sharding=Sharding.FSDP_FULL_SHARD): 2.02,
    }
    results = frame(kept_record(method, seconds=s) for method, s in seconds.items())
    assert leaders(results, TWO, "pythia-160m")["step_seconds"].to_list() == [2.0, 2.02, 2.07, 2.3]
    same = leaders(results, TWO, "pythia-160m", same_numerics=True)
    assert same["step_seconds"].to_list() == [2.0, 2.07]
    assert leaders(results.head(1), TWO, "pythia-160m")["step_seconds"].to_list() == [3.0]
    with pytest.raises(NoResultsError):
        leaders(results, ONE, "pythia-160m")


def test_no_limited_result_leads_for_one_that_did_not_fit():
    limits = {"limits": {"micro_batch_sizes": [1]}, "key": "limited"}
    one, two = (Method(free_lunch=True, sharding=s) for s in (Sharding.ZERO_1, Sharding.ZERO_2))
    records = [
        kept_record(one, measurement=OUT_OF_MEMORY, at=1.0),
        kept_record(one, seconds=2.0, at=2.0) | limits,
        kept_record(two, seconds=2.01, at=3.0),
    ]
    for also in ((), ("limited",)):
        led = leaders(frame(records, also=also), TWO, "pythia-160m")
        assert led["step_seconds"].to_list() == [2.01]


def test_of_a_setting_only_the_result_that_counts_leads():
    limited = kept_record(seconds=2.0, at=3.0) | {"limits": {"timing_seconds": 1}, "key": "limited"}
    results = frame([kept_record(seconds=2.01, at=1.0), limited], also={"limited"})
    assert results.height == 2
    assert leaders(results, TWO, "pythia-160m")["step_seconds"].to_list() == [2.01]
