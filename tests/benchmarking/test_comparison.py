import json
import os
import subprocess
import sys

import pytest

from academic_pretraining.benchmarking.comparison import speed_report, speed_text, write_speed
from academic_pretraining.benchmarking.probes import StepSample
from academic_pretraining.benchmarking.timing import StepTimer

PREDICTED = {"step_seconds": 2.2, "peak_bytes": 3 * 2**30}


class Timer(StepTimer):
    """Has timed what a test says."""

    def __init__(self, *steps: float, skipped: tuple[int, ...] = ()) -> None:
        super().__init__(cuda=False)
        self.steps, self.skipped = steps, skipped

    def samples(self) -> list[StepSample]:
        return [
            StepSample(
                accumulation=1,
                seconds=seconds,
                data_seconds=0.0,
                optimizer_seconds=0.0,
                skipped=index in self.skipped,
            )
            for index, seconds in enumerate(self.steps)
        ]


def test_a_report_in_full():
    report = speed_report(Timer(1.0, 2.0, 6.0), PREDICTED)
    assert report.pop("finished_at") > 1.7e9
    assert report == {
        "steps": 3,
        "step_seconds": 3.0,
        "samples": [1.0, 2.0, 6.0],
        "peak_bytes": None,
        "predicted": PREDICTED,
    }


def test_overflows_are_left_out():
    report = speed_report(Timer(1.0, 100.0, 3.0, skipped=(1,)), None)
    assert (report["steps"], report["step_seconds"]) == (2, 2.0)


@pytest.mark.parametrize("timer", [Timer(), Timer(1.0, skipped=(0,))])
def test_without_a_step_there_is_no_time(timer):
    report = speed_report(timer, PREDICTED)
    assert (report["steps"], report["step_seconds"]) == (0, None)
    assert speed_text(report) == "no step was timed: the first ones are warm-up"


def report_of(**changes):
    return {
        "steps": 5,
        "step_seconds": 2.0,
        "samples": [2.0] * 5,
        "peak_bytes": None,
        "predicted": None,
        "finished_at": 0.0,
    } | changes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "2 s a step over 5 steps"),
        ({"step_seconds": 0.0123456}, "0.01235 s a step over 5 steps"),
        ({"peak_bytes": 4 * 2**30}, "2 s a step over 5 steps"),
        ({"predicted": PREDICTED}, "2 s a step over 5 steps; predicted 2.2 s (+10.00%)"),
        (
            {"predicted": PREDICTED | {"step_seconds": 1.5}, "peak_bytes": 4 * 2**30},
            "2 s a step over 5 steps; predicted 1.5 s (-25.00%); peak memory 4.00 GiB, predicted "
            "-25.00% of it",
        ),
    ],
)
def test_it_is_said_in_a_line(changes, text):
    assert speed_text(report_of(**changes)) == text


def test_it_is_kept_as_json(tmp_path):
    report = speed_report(Timer(1.0, 2.0), PREDICTED)
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
print(json.dumps(speed_report(Timer(cuda=False), None)))
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
    reports = [json.loads(rank.communicate(timeout=60)[0]) for rank in ranks]
    assert [report["samples"] for report in reports] == [[4.0, 3.0]] * 2
    assert [report["step_seconds"] for report in reports] == [3.5, 3.5]
