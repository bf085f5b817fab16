import datetime
import json
import os
import re
import statistics
import subprocess
import sys
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from academic_pretraining.benchmarking import host
from academic_pretraining.benchmarking.comparison import (
    SaysSpeed,
    StopsWhenKnown,
    comparison_text,
    deviations,
    finish_text,
    speed_report,
    write_speed,
)
from academic_pretraining.benchmarking.host import HostUse, HostWatch
from academic_pretraining.benchmarking.probes import StepSample
from academic_pretraining.benchmarking.timing import StepTimer

ANY: Any = None
PREDICTED = {"step_seconds": 2.2, "peak_bytes": 3 * 2**30, "mfu": 0.25}
TOKENS = {"units_per_step": 1000, "unit": "tokens"}


class Timer(StepTimer):
    """Has timed what a test says."""

    def __init__(
        self, *steps: float, skipped: tuple[int, ...] = (), short: tuple[int, ...] = ()
    ) -> None:
        super().__init__(cuda=False)
        self.steps, self.skipped, self.short = steps, skipped, short

    def samples(self) -> list[StepSample]:
        return [
            StepSample(
                accumulation=1 if index in self.short else 4,
                seconds=seconds,
                data_seconds=0.0,
                optimizer_seconds=0.0,
                skipped=index in self.skipped,
            )
            for index, seconds in enumerate(self.steps)
        ]


def test_a_report_in_full():
    report = speed_report(Timer(1.0, 2.0, 6.0), PREDICTED, **TOKENS)
    assert report.pop("finished_at") > 1.7e9
    assert report == {
        "steps": 3,
        "step_seconds": 3.0,
        "step_standard_error_seconds": pytest.approx((14 / 2 / 3) ** 0.5),
        "samples": [1.0, 2.0, 6.0],
        "unit": "tokens",
        "units_per_second": pytest.approx(1000 / 3),
        "mfu": pytest.approx(0.25 * 2.2 / 3),
        "peak_bytes": None,
        "predicted": PREDICTED,
        "other_cpu_share": None,
    }


def test_the_shorter_step_that_an_epoch_ends_with_is_left_out():
    report = speed_report(Timer(2.0, 0.5, 2.0, 0.5, short=(1, 3)), PREDICTED, **TOKENS)
    assert (report["steps"], report["step_seconds"]) == (2, 2.0)


@pytest.mark.parametrize(("busy", "lines"), [(1.0, 0), (4.0, 1)])
def test_who_else_used_the_host_is_told_where_it_was_much(monkeypatch, busy, lines):
    monkeypatch.setattr(host, "allowed_cores", lambda: set(range(4)))
    monkeypatch.setattr(host, "usable_cores", lambda: 4)
    watch = HostWatch(2)
    watch.use = HostUse(own_seconds=10.0, busy_seconds=10.0 * busy, wall_seconds=10.0)
    report = speed_report(Timer(1.0, 2.0), PREDICTED, **TOKENS, host=watch)
    assert report["other_cpu_share"] == (busy - 1) / 4
    said = [line for line in comparison_text(report).splitlines() if "others" in line]
    assert len(said) == lines
    assert all(line.startswith("others kept 75% of the host's cores busy") for line in said)


def test_overflows_are_left_out():
    report = speed_report(Timer(1.0, 100.0, 3.0, skipped=(1,)), None, **TOKENS)
    assert (report["steps"], report["step_seconds"]) == (2, 2.0)


@pytest.mark.parametrize("timer", [Timer(), Timer(1.0, skipped=(0,))])
def test_without_a_step_there_is_no_time(timer):
    report = speed_report(timer, PREDICTED, **TOKENS)
    assert (report["steps"], report["step_seconds"]) == (0, None)
    assert deviations(report) == {}
    assert comparison_text(report) == "no step was timed: the first ones are warm-up"


def report_of(**changes):
    report = speed_report(Timer(2.0, 2.0, 2.0, 2.0), PREDICTED, **TOKENS)
    return report | changes


def table(report) -> list[list[str]]:
    return [re.split("  +", line) for line in comparison_text(report).splitlines()]


def test_predicted_stands_beside_actual():
    assert table(report_of(peak_bytes=4 * 2**30)) == [
        ["4 steps, standard error 0.00%", "actual", "predicted", "difference"],
        ["step", "2 s", "2.2 s", "+10.00%"],
        ["throughput", "500 tokens/s", "455 tokens/s", "-9.09%"],
        ["MFU", "27.50%", "25.00%", "-9.09%"],
        ["peak memory", "4.00 GiB", "3.00 GiB", "-25.00%"],
    ]


def test_without_a_prediction_the_actual_figures_stand_alone():
    report = speed_report(Timer(2.0), None, **TOKENS) | {"peak_bytes": 2**30}
    assert table(report) == [
        ["1 step", "actual"],
        ["step", "2 s"],
        ["throughput", "500 tokens/s"],
        ["peak memory", "1.00 GiB"],
    ]


def test_deviations_are_those_of_the_prediction():
    assert deviations(report_of()) == {"step": pytest.approx(0.1)}
    assert deviations(report_of(peak_bytes=4 * 2**30)) == {
        "step": pytest.approx(0.1),
        "peak memory": pytest.approx(-0.25),
    }


def test_the_finish_is_a_date():
    with_days = finish_text(10.0, 17_280)
    assert with_days.startswith(
        "17,280 optimizer steps are left, which alone take 2 days, 0:00:00: until "
    )
    end = datetime.datetime.strptime(with_days.split("until ")[1][:16], "%Y-%m-%d %H:%M")
    assert abs(end - datetime.datetime.now() - datetime.timedelta(days=2)).total_seconds() < 120


class Steps(Timer):
    """Has timed one more with each step after the warm-up, as far as it was let."""

    def __init__(self, *steps: float, skipped: tuple[int, ...] = ()) -> None:
        super().__init__(*steps, skipped=skipped)
        self.seen = self.timed = self.left_out = 0
        self.disturbed = False

    def end(self) -> None:
        self.seen += 1
        if self.disturbed:
            self.left_out += 1
        elif self.seen > self.warm_up_steps:
            self.timed += 1
        self.disturbed = False

    def leave_out_current(self) -> None:
        self.disturbed = True

    def samples(self) -> list[StepSample]:
        return super().samples()[: self.timed]


def stops_at(timer: Steps, **options) -> int:
    """Run steps until it says stop."""
    callback = StopsWhenKnown(timer, **options)
    control = TrainerControl()
    for step in range(1, 1000):
        timer.end()
        callback.on_step_end(ANY, TrainerState(global_step=step), control)
        if control.should_training_stop:
            return step
    raise AssertionError("it never stopped")


def test_quiet_steps_are_known_soon():
    timer = Steps(*[1.0] * 999)
    # Two of warm-up, one, one that a question disturbed, three more.
    assert stops_at(timer) == 7
    assert len(timer.samples()) == 4


def test_noisy_steps_are_repeated_until_the_error_is_small():
    timer = Steps(*[0.96, 1.04] * 499)
    stop = stops_at(timer, limit_seconds=1e6)
    spread = statistics.stdev([0.96, 1.04] * 2)
    assert len(timer.samples()) == pytest.approx((spread / 0.01) ** 2, abs=1.01)
    assert stop == len(timer.samples()) + timer.warm_up_steps + timer.left_out


def test_the_limit_counts_timed_steps():
    timer = Steps(*[5.0, 15.0] * 499)
    stops_at(timer, limit_seconds=120.0)
    assert len(timer.samples()) == 12


@pytest.mark.parametrize("seconds", [50.0, 500.0])
def test_slow_steps_are_few_but_one_at_least(seconds):
    timer = Steps(*[seconds] * 9)
    stops_at(timer, limit_seconds=120.0)
    assert len(timer.samples()) == max(1, int(120 / seconds))


def test_overflows_do_not_count_as_known():
    timer = Steps(*[1.0] * 99, skipped=(0, 1, 2))
    stops_at(timer)
    assert len([s for s in timer.samples() if not s.skipped]) >= 4


def test_what_is_never_timed_is_given_up():
    timer = Steps(*[1.0] * 999, skipped=tuple(range(999)))
    assert stops_at(timer) < 40


@pytest.mark.parametrize(
    ("step_seconds", "said"),
    [
        (8.5249, "14 timed ones at most, 8.525 s each as predicted: 0:02:16, and"),
        # One is timed, however long it takes.
        (5376.0, "1 timed ones at most, 5,376 s each as predicted: 4:28:48, and"),
        (1e-300, "1,000,000 timed ones at most, 1e-300 s each as predicted: 0:00:00, and"),
        (1e29, "1 timed ones at most, 1e+29 s each as predicted: 115740740 days, "),
    ],
)
def test_a_verification_says_beforehand_how_long_it_takes(step_seconds, said, capsys):
    timer = StepTimer(cuda=False)
    predicted = {"step_seconds": step_seconds}
    stops = StopsWhenKnown(timer, predicted=predicted, limit_seconds=120.0)
    for first in (True, False):
        state = TrainerState(is_world_process_zero=first)
        stops.on_train_begin(ANY, state, TrainerControl())
        text = capsys.readouterr().out
        assert text.startswith(f"2 optimizer steps of warm-up and {said}" if first else "")
        assert bool(text) == first


@pytest.mark.parametrize(
    ("last_step", "said_of_the_end"),
    [
        (None, "100 optimizer steps are left, which alone take 0:03:20: until "),
        (1000, "100 optimizer steps are left, which alone take 0:03:20: until "),
        (8, "3 optimizer steps are left, which alone take 0:00:06: until "),
        (6, "1 optimizer step is left, which alone takes 0:00:02: until "),
        (5, "throughput "),
    ],
)
def test_the_first_steps_are_said_once_with_the_finish(capsys, last_step, said_of_the_end):
    timer = Steps(*[2.0] * 99)
    callback = SaysSpeed(timer, PREDICTED, timed_steps=3, last_step=last_step, **TOKENS)
    for step in range(1, 20):
        timer.end()
        state = TrainerState(global_step=step, max_steps=105, is_world_process_zero=True)
        callback.on_step_end(ANY, state, TrainerControl())
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("3 steps, standard error 0.00%")
    last = next(line for line in reversed(said) if not line.startswith("MFU"))
    assert last.startswith(said_of_the_end)


def test_it_is_kept_as_json(tmp_path):
    report = speed_report(Timer(1.0, 2.0), PREDICTED, **TOKENS)
    write_speed(report, tmp_path)
    assert json.loads((tmp_path / "speed.json").read_text()) == report
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


RANK = """
import json, os, sys
import torch.distributed as dist
from academic_pretraining.benchmarking.comparison import speed_report
from academic_pretraining.benchmarking.probes import StepSample
from academic_pretraining.benchmarking.timing import StepTimer

class Timer(StepTimer):
    def samples(self):
        steps = {0: ((1.0, False), (2.0, False), (3.0, False)),
                 1: ((4.0, False), (1.0, True), (1.0, False))}[dist.get_rank()]
        rest = {"accumulation": 1, "data_seconds": 0.0, "optimizer_seconds": 0.0}
        return [StepSample(seconds=seconds, skipped=skipped, **rest) for seconds, skipped in steps]

dist.init_process_group("gloo", init_method=sys.argv[2], rank=int(sys.argv[1]), world_size=2)
print(json.dumps(speed_report(Timer(cuda=False), None, units_per_step=1, unit='images')))
"""


@pytest.mark.slow
def test_the_slowest_rank_counts_in_every_step(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), f"file://{tmp_path / 'meeting'}"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        reports = [json.loads(rank.communicate(timeout=600)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [report["samples"] for report in reports] == [[4.0, 3.0]] * 2
    assert [report["step_seconds"] for report in reports] == [3.5, 3.5]
