import dataclasses
import re
from typing import Any

import pytest
from samples import MEASURED, OUT_OF_MEMORY, TIMING, TWO, kept_record

from academic_pretraining.config import grid
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, MethodSpace, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.records import Measurement
from academic_pretraining.results import frame
from experiments.tables import days, faster_with_limits, print_results

COLUMNS = [
    *("method", "training days", "step", "micro-batch x accumulation", "peak memory", "MFU"),
    *("tokens/s", "compile", "numerics"),
]
DETAIL = [
    *("method", "of datasheet", "of ceiling", "data", "communication", "optimizer", "others"),
    *("checkpoint", "ceiling", "hardware FLOPs"),
]
SHARDED = Method(free_lunch=True, sharding=Sharding.ZERO_2)


def record_of(
    method: Method = SHARDED,
    measurement: Measurement = MEASURED,
    *,
    step: float | None = None,
    model: str = "pythia-160m",
    hardware: Hardware = TWO,
    **versions: str,
) -> dict[str, Any]:
    return kept_record(
        method, measurement, seconds=step, model=model, hardware=hardware, versions=versions
    )


def tables_of(text: str) -> list[list[list[str]]]:
    """Read tables again, the heading of each before its rows; a divided cell is joined."""
    tables: list[list[list[str]]] = []
    ends = False
    for line in text.splitlines():
        if line.startswith("┏"):
            tables.append([])
        cells = [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        if not cells:
            ends = line[:1] in "┏┡├"
            continue
        # A figure stands in the first line of its row.
        if ends or (line[0] == "│" and any(re.match(r"[\d-]", cell) for cell in cells[1:])):
            tables[-1].append(cells)
            ends = False
        else:
            pairs = zip(tables[-1][-1], cells, strict=True)
            tables[-1][-1] = [" ".join(filter(None, pair)) for pair in pairs]
    return tables


@pytest.fixture
def printed(capsys):
    """Print results and give the text."""

    def text(*records: dict[str, Any], width: int | None = None, detail: bool = False) -> str:
        print_results(frame(records), width, detail=detail)
        return capsys.readouterr().out

    return text


@pytest.fixture
def cells(printed):
    """Print one table and read its rows again."""

    def rows(*records: dict[str, Any]) -> list[list[str]]:
        [[heading, *rest]] = tables_of(printed(*records))
        assert heading == COLUMNS
        return rest

    return rows


def test_a_row_in_full(printed):
    text = printed(record_of())
    assert text.splitlines()[0].strip() == "pythia-160m on 2 x h200, fastest first"
    assert tables_of(text) == [
        [
            COLUMNS,
            [
                *("free-lunch + ZeRO-2", "4.14 ± 0.10", "2.5 s ± 2.0%", "16 x 32", "3.0 GiB"),
                *("40.0%", "839,270", "on", "fp16 parameters"),
            ],
        ]
    ]


GRID = [m for m, why in grid(TWO, MODELS["pythia-160m"], MethodSpace.ALL) if not why]


@pytest.mark.parametrize("width", [20, 40, 64, 80, 100, 120, 160])
@pytest.mark.parametrize("detail", [False, True])
def test_nothing_is_cut_off_at_any_width(printed, width, detail):
    records = [
        record_of(method, step=10.0 ** (index % 7), torch="2")
        for index, method in enumerate(GRID[:-1])
    ]
    records.append(record_of(GRID[-1], OUT_OF_MEMORY, torch="2"))
    records.append(record_of(GRID[3], step=3.0, torch="1") | {"limits": {"timing_seconds": 1}})
    whole, text = (printed(*records, width=w, detail=detail) for w in (None, width))
    assert "…" not in text
    # The same headings and rows as without a limit, however many tables they take.
    columns: dict[str, list[str]] = {}
    for heading, *rows in tables_of(text):
        for name, *values in zip(heading, *rows, strict=True):
            assert columns.setdefault(name, values) == values or name == "method"
            columns[name] = values
    wanted: dict[str, list[str]] = {}
    for name, *values in [c for t in tables_of(whole) for c in zip(*t, strict=True)]:
        wanted[name] = values
    assert columns == wanted
    assert set(columns) == {*COLUMNS, *(DETAIL if detail else [])}
    if width >= 64:
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_at_80_columns_what_is_asked_for_most_stands_first(printed):
    records = [record_of(method, step=8.7) for method in GRID]
    headings = [table[0] for table in tables_of(printed(*records, width=80))]
    assert headings == [COLUMNS[:5], ["method", *COLUMNS[5:]]]


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
def test_a_result_under_other_conditions_is_marked(cells, limits, company, said):
    measurement = dataclasses.replace(MEASURED, company=company)
    [row] = cells(record_of(measurement=measurement) | {"limits": limits})
    assert row[0] == f"free-lunch + ZeRO-2{said}"


def test_images_nodes_and_a_missing_datasheet(printed):
    best = dataclasses.replace(TIMING, mfu=None, step_seconds=4.0)
    nodes = Hardware(num_nodes=4, gpus_per_node=8, gpu_type="h200")
    measurement = dataclasses.replace(MEASURED, best=best, compile="failed")
    text = printed(record_of(Method(), measurement, model="vit", hardware=nodes))
    assert text.splitlines()[0].strip() == "vit on 4 x 8 x h200, fastest first"
    [[heading, row]] = tables_of(text)
    assert heading[6] == "images/s"
    assert [row[0], *row[4:]] == ["naive", "3.0 GiB", "-", "256", "failed", "reference"]


def test_the_fastest_stands_first_and_what_did_not_fit_last(cells):
    checkpointing = Method(free_lunch=True, activation_checkpointing=True)
    rows = cells(
        record_of(Method(), OUT_OF_MEMORY),
        record_of(SHARDED, step=30.0),
        record_of(checkpointing, step=4.0),
    )
    assert [row[2] for row in rows] == ["4 s ± 2.0%", "30 s ± 2.0%", "-"]


@pytest.mark.parametrize(
    ("requested", "said"), [(2**31, "out of memory, 1.00 GiB short"), (None, "out of memory")]
)
def test_what_did_not_fit_says_how_much_was_missing(cells, requested, said):
    measurement = dataclasses.replace(OUT_OF_MEMORY, out_of_memory_requested_bytes=requested)
    [row] = cells(record_of(SHARDED, measurement))
    assert row == [f"free-lunch + ZeRO-2: {said}", *"------", "off", "-"]


def test_detail_says_where_flops_and_time_go(printed):
    best = dataclasses.replace(TIMING, optimizer_share=None)
    method = dataclasses.replace(SHARDED, activation_checkpointing=True)
    record = record_of(method, dataclasses.replace(MEASURED, best=best))
    text = printed(record, record_of(Method(), OUT_OF_MEMORY), detail=True)
    assert "\nOf one optimizer step (1.02e+15 model FLOPs) " in text
    assert tables_of(text)[1] == [
        DETAIL,
        [
            *("free-lunch + checkpointing + ZeRO-2", "40.0%", "25.6%", "1.0%", "5.0%", "-"),
            *("2.0%", "5 s, 1.0 GiB", "800 TFLOP/s", "1.37e+15"),
        ],
    ]
    # Of other batches, each has its own.
    other = record_of(Method())
    other["measurement"]["best"]["global_batch_size"] *= 2
    headings = [table[0] for table in tables_of(printed(record, other, detail=True))]
    assert headings[1] == [*DETAIL, "model FLOPs"]


def test_without_a_time_there_is_no_detail(printed):
    assert len(tables_of(printed(record_of(Method(), OUT_OF_MEMORY), detail=True))) == 1


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        *((9.8, 10.2, "10.0 ± 0.2"), (998.0, 1002.0, "1,000.0 ± 2.0")),
        # No training takes less than no time.
        (0.0, 30.0, "10.0 ± 20.0"),
    ],
)
def test_a_training_time_has_the_digits_of_its_interval(low, high, text):
    middle = (low + high) / 2 if low else 10.0
    row = {"training_days": middle, "training_days_low": low, "training_days_high": high}
    assert days(row) == text


def test_a_result_of_an_older_recipe_says_so(cells):
    old = record_of(step=1.0)
    old["config"]["recipe"]["learning_rate"] = 1.0
    reworded = record_of(Method())
    reworded["config"]["recipe"]["note"] = "worded otherwise"
    rows = cells(old, record_of(step=2.0), reworded)
    assert [(row[0], row[2]) for row in rows] == [
        ("free-lunch + ZeRO-2 (an older recipe)", "1 s ± 2.0%"),
        ("free-lunch + ZeRO-2", "2 s ± 2.0%"),
        ("naive", "2.5 s ± 2.0%"),
    ]


def test_a_result_with_other_training_arguments_says_so(cells):
    other = record_of(step=1.0) | {"key": "{}"}
    assert [row[0] for row in cells(other, record_of(step=2.0))] == [
        "free-lunch + ZeRO-2 (other training arguments)",
        "free-lunch + ZeRO-2",
    ]


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"torch": "1", "deepspeed": "3"}, "torch 1"),
        ({"torch": "2"}, "other libraries"),
        ({}, "other libraries"),
        ({"torch": "\x1b[2J\n"}, "torch \\x1b[2J\\n"),
    ],
)
def test_of_other_libraries_those_that_differ_are_named(cells, versions, said):
    new = record_of(step=2.0, torch="2", deepspeed="3") | {"measured_at": 9.0}
    rows = cells(record_of(Method(), step=1.0, **versions), new)
    assert [row[0] for row in rows] == [f"naive ({said})", "free-lunch + ZeRO-2"]


def test_where_mfu_is_a_share_of_different_peaks_that_is_said(printed):
    tf32 = Method(free_lunch=True)
    checkpointing = Method(free_lunch=True, activation_checkpointing=True)
    records = [record_of(m, model="vit") for m in (Method(), tf32, checkpointing)]
    said = "MFU: of 494.5 TFLOP/s (TF32), but of 67 TFLOP/s (fp32) for naive"
    assert printed(*records).splitlines()[-1] == said
    # In half precision TF32 changes nothing, and a CPU has no MFU.
    on_cpu = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="cpu")
    bare = dataclasses.replace(MEASURED, best=dataclasses.replace(TIMING, mfu=None))
    for others in (
        [record_of(m) for m in (Method(), tf32)],
        [record_of(m, bare, model="vit", hardware=on_cpu) for m in (Method(), tf32)],
        [record_of(m, model="vit") for m in (tf32, checkpointing)],
    ):
        assert "MFU: " not in printed(*others)


LIMITED_KEY = record_of()["key"][:-1] + ',"limits":{"timing_seconds":1}}'


@pytest.mark.parametrize(
    ("whole", "step", "said"),
    [
        (record_of(step=3.0), 2.0, "2 s a step with --timing-seconds, 3 s without"),
        (record_of(step=3.0), 3.0, None),
        (record_of(step=3.0), 4.0, None),
        (
            record_of(measurement=OUT_OF_MEMORY),
            2.0,
            "2 s a step with --timing-seconds, out of memory without",
        ),
        # Of another method, or not chosen from at all.
        (record_of(Method(), step=3.0), 2.0, None),
        (record_of(step=3.0) | {"key": "{}"}, 2.0, None),
        (record_of(step=3.0, torch="1") | {"measured_at": -1.0}, 2.0, None),
    ],
)
def test_a_limited_result_that_is_faster_than_the_whole_one_is_named(whole, step, said):
    limited = record_of(step=step) | {"limits": {"timing_seconds": 1}, "key": LIMITED_KEY}
    rows = frame([whole, limited], {LIMITED_KEY})
    line = f"free-lunch + ZeRO-2: {said}, by which settings are chosen"
    assert list(faster_with_limits(rows)) == ([line] if said else [])
