"""A record as a flat row."""

import dataclasses
import math

import pytest
from samples import MEASURED, OUT_OF_MEMORY, TIMING, kept_record

from academic_pretraining.methods import Method, Sharding
from academic_pretraining.results import frame


def test_a_row_in_full():
    method = Method(free_lunch=True, activation_checkpointing=True, sharding=Sharding.ZERO_2)
    assert frame([kept_record(method, at=1.5e9)]).row(0, named=True) == {
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
    row = frame([kept_record(measurement=bare, versions={})]).row(0, named=True)
    assert (row["mfu"], row["torch"]) == (None, None)
    assert row["step_seconds"] == 2.5


@pytest.mark.parametrize(
    ("freedom", "width"), [(0, 0.0196), (2, 0.04303), (None, 0.04303), (7, 0.02365), (99, 0.01984)]
)
def test_few_repeated_steps_widen_the_interval(freedom, width):
    few = dataclasses.replace(TIMING, step_degrees_of_freedom=freedom)
    older = kept_record(measurement=dataclasses.replace(MEASURED, best=few))
    if freedom is None:
        del older["measurement"]["best"]["step_degrees_of_freedom"]
    row = frame([older]).row(0, named=True)
    assert row["step_half_width"] == pytest.approx(width, rel=1e-3)
    high = row["training_days"] * (1 + math.hypot(0.02, row["step_half_width"] / 2.5))
    assert row["training_days_high"] == pytest.approx(high)


def test_an_image_is_one_unit():
    row = frame([kept_record(model="vit", seconds=2.0)]).row(0, named=True)
    assert row["units_per_example"] == 1
    assert row["units_per_second"] == 1024 / 2.0
    assert row["training_days"] == pytest.approx(2.0 * 311_948 / 86_400)


def test_a_setting_that_did_not_fit_has_a_row_without_times():
    row = frame([kept_record(measurement=OUT_OF_MEMORY)]).row(0, named=True)
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
    assert frame([kept_record(measurement=unknown)])["missing_gib"].to_list() == [None]


@pytest.mark.parametrize("free", [2**31, 2**32])
def test_a_failure_of_nothing_requested_is_not_null(free):
    # Fragmented memory may be free and of no use.
    exact = dataclasses.replace(OUT_OF_MEMORY, out_of_memory_free_bytes=free)
    assert frame([kept_record(measurement=exact)])["missing_gib"].to_list() == [0.0]


def test_a_record_from_before_the_ceiling_still_has_a_row():
    record = kept_record()
    del record["measurement"]["ceiling_flops"]
    for name in ("data_share", "optimizer_share"):
        del record["measurement"]["best"][name]
    row = frame([record]).row(0, named=True)
    assert row["step_seconds"] == 2.5
    assert [row[n] for n in ("ceiling_share", "data_share", "optimizer_share")] == [None] * 3
