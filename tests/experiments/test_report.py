import dataclasses
import io
import re
import time
from typing import Any

import pytest
from rich.console import Console
from samples import MEASURED, OUT_OF_MEMORY, TIMING

from academic_pretraining.benchmarking.probes import Probe, Purpose
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, MethodSpace, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.records import Measurement, to_record
from academic_pretraining.results import frame
from experiments.identity import cache_key
from experiments.report import Progress, days, detail_table, grid_lines, results_table, seconds

COLUMNS = [
    *("model", "hardware", "method", "micro-batch x accumulation", "step"),
    *("training", "throughput", "MFU", "peak memory", "compile", "numerics"),
]
TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")
SHARDED = Method(free_lunch=True, sharding=Sharding.ZERO_2)
PROBE = Probe(
    purpose=Purpose.TIMING,
    micro_batch_size=4,
    high=2,
    high_steps=6,
    compile=True,
    deadline_seconds=9.0,
)


def record_of(
    method: Method = SHARDED,
    measurement: Measurement = MEASURED,
    *,
    step: float | None = None,
    model: str = "pythia-160m",
    hardware: Hardware = TWO,
) -> dict[str, Any]:
    if step is not None:
        best = dataclasses.replace(TIMING, step_seconds=step)
        measurement = dataclasses.replace(measurement, best=best)
    config = TrainingConfig(hardware=hardware, recipe=MODELS[model], method=method)
    record = to_record(config, measurement, versions={}, measured_at=0.0)
    return record | {"key": cache_key(config)}


def cells(*records) -> list[list[str]]:
    """Draw a table and read its rows again."""
    console = Console(file=io.StringIO(), width=240)
    console.print(results_table(frame(records)))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "Results, fastest first"
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines[1:]]
    heading, *rest = [row for row in rows if row]
    assert heading == COLUMNS
    return rest


def test_a_row_in_full():
    assert cells(record_of()) == [
        [
            *("pythia-160m", "2 x h200", "free-lunch + ZeRO-2", "16 x 32", "2.5 s ± 2.0%"),
            *("4.14 ± 0.09 days", "839,270 tok/s", "40.0%", "3.0 GiB", "on", "fp16 parameters"),
        ]
    ]


@pytest.mark.parametrize(
    ("limits", "company", "said"),
    [
        ({}, "", ""),
        ({"micro_batch_sizes": [4]}, "", " (with --micro-batch-sizes)"),
        ({"timing_seconds": 1, "x": 2}, "", " (with --timing-seconds, --x)"),
        (
            {"allow_busy_gpus": True},
            "GPU 1 has 20 GiB in use",
            " (with --allow-busy-gpus) (beside others on the GPUs)",
        ),
    ],
)
def test_a_result_under_other_conditions_is_marked(limits, company, said):
    measurement = dataclasses.replace(MEASURED, company=company)
    [row] = cells(record_of(measurement=measurement) | {"limits": limits})
    assert row[0] == f"pythia-160m{said}"


def test_images_nodes_and_a_missing_datasheet():
    best = dataclasses.replace(TIMING, mfu=None, step_seconds=4.0)
    nodes = Hardware(num_nodes=4, gpus_per_node=8, gpu_type="h200")
    measurement = dataclasses.replace(MEASURED, best=best, compile="failed")
    [row] = cells(record_of(Method(), measurement, model="vit", hardware=nodes))
    assert row[:3] == ["vit", "4 x 8 x h200", "naive"]
    assert row[6:] == ["256 img/s", "-", "3.0 GiB", "failed", "reference"]


def test_the_fastest_stands_first_and_what_did_not_fit_last():
    checkpointing = Method(free_lunch=True, activation_checkpointing=True)
    rows = cells(
        record_of(Method(), OUT_OF_MEMORY),
        record_of(SHARDED, step=30.0),
        record_of(checkpointing, step=4.0),
    )
    assert [row[4] for row in rows] == ["4 s ± 2.0%", "30 s ± 2.0%", "-"]


@pytest.mark.parametrize(
    ("requested", "said"), [(2**31, "out of memory, 1.00 GiB short"), (None, "out of memory")]
)
def test_what_did_not_fit_says_how_much_was_missing(requested, said):
    measurement = dataclasses.replace(OUT_OF_MEMORY, out_of_memory_requested_bytes=requested)
    [row] = cells(record_of(SHARDED, measurement))
    assert row == ["pythia-160m", "2 x h200", "free-lunch + ZeRO-2", said, *"-----", "off", "-"]


def test_detail_says_where_flops_and_time_go():
    best = dataclasses.replace(TIMING, optimizer_share=None)
    method = dataclasses.replace(SHARDED, activation_checkpointing=True)
    record = record_of(method, dataclasses.replace(MEASURED, best=best))
    console = Console(file=io.StringIO(), width=240)
    console.print(detail_table(frame([record, record_of(Method(), OUT_OF_MEMORY)])))
    lines = console.file.getvalue().splitlines()  # pyright: ignore
    [row] = [[c.strip() for c in line.split("│")[1:-1]] for line in lines if line[:1] == "│"]
    assert row == [
        *("free-lunch + checkpointing + ZeRO-2", "1.02e+15", "1.37e+15", "800 TFLOP/s"),
        *("40.0%", "25.6%", "839,270 tok/s", "1.0%", "5.0%", "-", "2.0%", "5 s, 1.0 GiB"),
    ]


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(9.8, 10.2, "10.0 ± 0.2 days"), (998.0, 1002.0, "1,000.0 ± 2.0 days")],
)
def test_a_training_time_has_the_digits_of_its_interval(low, high, text):
    middle = (low + high) / 2
    row = {"training_days": middle, "training_days_low": low, "training_days_high": high}
    assert days(row) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123 s"),
        (2.0, "2 s"),
        (59.94, "59.9 s"),
        (60.0, "1 min 00 s"),
        (119.6, "2 min 00 s"),
        (1811.3, "30 min 11 s"),
        (3599.6, "1 h 00 min"),
        (3600 * 30 + 59 * 60, "30 h 59 min"),
    ],
)
def test_durations_are_short(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize("gpus", [1, 2])
def test_each_point_of_a_grid_has_a_line(gpus):
    machine = Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type="h200")
    recipe = MODELS["pythia-14m"]
    points = list(grid(machine, recipe, MethodSpace.ALL))
    configs = {
        method: TrainingConfig(hardware=machine, recipe=recipe, method=method)
        for method, reasons in points
        if not reasons
    }
    lines = list(grid_lines(points, configs))
    assert len(lines) == len(points)
    for (method, reasons), line in zip(points, lines, strict=True):
        if reasons:
            assert line == f"skip  {method.label}: {'; '.join(reasons)}"
        else:
            each = 1024 // gpus
            assert line == (
                f"run   {method.label}: global batch 1024 = {gpus} GPU{'s' * (gpus > 1)} x "
                f"micro-batch x accumulation, from 1 x {each} to {each} x 1 "
                f"({each.bit_length()} plans)"
            )


@pytest.fixture
def clock(monkeypatch):
    """Tell the time."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_progress_tells_the_time_left_and_the_best_so_far(clock, configs, capsys):
    progress = Progress()
    ends = [
        ({"measurement": {"best": None}}, ""),
        (record_of(step=90.0), ""),
        (None, "rank 1 [died] in /tmp/x.log"),
        (record_of(step=2.5), ""),
    ]
    for index, (config, (record, note)) in enumerate(zip(configs, ends, strict=True), start=1):
        progress.starts(index, len(configs), len(configs) - index + 1, config)
        clock[0] += 5
        if index == 2:
            progress.probes(PROBE)
        clock[0] += 5
        progress.ends(config, record, note)
    said = capsys.readouterr()
    assert said.out == ""
    names = [config.method.label for config in configs]
    assert said.err.splitlines() == [
        f"[1/4] {names[0]}",
        "        10 s  out of memory",
        f"[2/4] {names[1]}, about 30 s left",
        "         5 s  timing at micro-batch 4, compiled",
        "        10 s  1 min 30 s a step at 16 x 32",
        f"[3/4] {names[2]}, about 20 s left, best so far 1 min 30 s a step ({names[1]})",
        "        10 s  failed: rank 1 [died] in /tmp/x.log",
        f"[4/4] {names[3]}, about 10 s left, best so far 1 min 30 s a step ({names[1]})",
        "        10 s  2.5 s a step at 16 x 32",
    ]


def test_what_is_waited_for_does_not_count_as_a_settings_time(clock, configs, capsys):
    progress = Progress()
    # Before the first setting, to see that the GPUs are free.
    progress.waits("another measurement")
    clock[0] += 500
    progress.starts(1, 2, 2, configs[0])
    clock[0] += 1
    progress.waits("another measurement is using a GPU: waiting for its end")
    clock[0] += 1000
    progress.probes(dataclasses.replace(PROBE, compile=False))
    clock[0] += 9
    progress.ends(configs[0], record_of(step=3.0), "")
    progress.starts(2, 2, 1, configs[1])
    progress.waits("again")
    clock[0] += 50
    progress.ends(configs[1], None, "no device")
    assert capsys.readouterr().err.splitlines()[2:] == [
        "         1 s  another measurement is using a GPU: waiting for its end",
        "         1 s  timing at micro-batch 4",
        "        10 s  3 s a step at 16 x 32",
        f"[2/2] {configs[1].method.label}, about 10 s left, best so far 3 s a step "
        f"({configs[0].method.label})",
        "         0 s  again",
        "         0 s  failed: no device",
    ]


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (None, ""),
        (0.19, ""),
        (
            0.5,
            "; others kept 50% of the host's cores busy meanwhile, which slows data loading and "
            "offloading",
        ),
    ],
)
def test_a_busy_host_is_told(clock, configs, capsys, share, said):
    record = record_of(step=3.0)
    record["measurement"]["best"]["other_cpu_share"] = share
    progress = Progress()
    progress.starts(1, 1, 1, configs[0])
    progress.ends(configs[0], record, "")
    line = f"         0 s  3 s a step at 16 x 32{said}"
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_a_slower_setting_does_not_become_the_best(clock, configs, capsys):
    progress = Progress()
    for index, step in enumerate((3.0, 9.0), start=1):
        progress.starts(index, 3, 4 - index, configs[index - 1])
        progress.ends(configs[index - 1], record_of(step=step), "")
    progress.starts(3, 3, 1, configs[2])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"best so far 3 s a step ({configs[0].method.label})")


def test_what_was_recalled_competes_and_takes_no_time(clock, configs, capsys):
    progress = Progress()
    nothing = {"measurement": {"best": None}}
    progress.recalls(configs[0], nothing)
    progress.starts(2, 9, 3, configs[1])
    clock[0] += 10
    progress.ends(configs[1], record_of(step=3.0), "")
    for record in (record_of(step=2.0), record_of(step=4.0), nothing):
        progress.recalls(configs[2], record)
    # Of the seven to come, two are to be measured.
    progress.starts(3, 9, 2, configs[3])
    said = capsys.readouterr()
    assert said.out == ""
    names = [config.method.label for config in configs]
    assert said.err.splitlines() == [
        f"[2/9] {names[1]}",
        "        10 s  3 s a step at 16 x 32",
        f"[3/9] {names[3]}, about 20 s left, best so far 2 s a step ({names[2]})",
    ]


def test_a_result_of_an_older_recipe_says_so():
    old = record_of(step=1.0)
    old["config"]["recipe"]["learning_rate"] = 1.0
    reworded = record_of(Method())
    reworded["config"]["recipe"]["note"] = "worded otherwise"
    rows = cells(old, record_of(step=2.0), reworded)
    assert [(row[0], row[2], row[4]) for row in rows] == [
        ("pythia-160m (an older recipe)", "free-lunch + ZeRO-2", "1 s ± 2.0%"),
        ("pythia-160m", "free-lunch + ZeRO-2", "2 s ± 2.0%"),
        ("pythia-160m", "naive", "2.5 s ± 2.0%"),
    ]


def test_a_result_with_other_training_arguments_says_so():
    other = record_of(step=1.0) | {"key": "{}"}
    assert [row[0] for row in cells(other, record_of(step=2.0))] == [
        "pythia-160m (other training arguments)",
        "pythia-160m",
    ]
