import dataclasses
import time
from typing import Any

import pytest
from samples import MEASURED, TIMING

from academic_pretraining.benchmarking.probes import Probe, Purpose
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, MethodSpace, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.records import to_record
from experiments.report import Progress, grid_lines, seconds

TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")
PROBE = Probe(
    purpose=Purpose.TIMING,
    micro_batch_size=4,
    high=2,
    high_steps=6,
    compile=True,
    deadline_seconds=9.0,
)


def record_of(step: float) -> dict[str, Any]:
    best = dataclasses.replace(TIMING, step_seconds=step)
    measurement = dataclasses.replace(MEASURED, best=best)
    config = TrainingConfig(
        hardware=TWO,
        recipe=MODELS["pythia-160m"],
        method=Method(free_lunch=True, sharding=Sharding.ZERO_2),
    )
    return to_record(config, measurement, versions={}, measured_at=0.0)


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
    clock[0] += 900
    progress.waits("another one is using the next GPU")
    clock[0] += 100
    progress.probes(dataclasses.replace(PROBE, compile=False))
    clock[0] += 9
    progress.ends(configs[0], record_of(step=3.0), "")
    progress.starts(2, 2, 1, configs[1])
    progress.waits("again")
    clock[0] += 50
    progress.ends(configs[1], None, "no device")
    assert capsys.readouterr().err.splitlines()[2:] == [
        "         1 s  another measurement is using a GPU: waiting for its end",
        "         1 s  another one is using the next GPU",
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
