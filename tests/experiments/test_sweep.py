import contextlib
import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.probes import Probe, Purpose
from academic_pretraining.errors import (
    AcademicPretrainingError,
    DeviceBusyError,
    HardwareMismatchError,
    MeasurementError,
)
from academic_pretraining.occupancy import Company
from academic_pretraining.records import config_of
from experiments.sweep import SweepEnd, sweep
from experiments.workspace import incomplete, read_records


class Log:
    """Keeps what a sweep reports, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple] = []

    def starts(self, index, total, left, config):
        self.lines.append(("starts", index, total, left, config))

    def recalls(self, config, record):
        self.lines.append(("recalls", config, record["measurement"]["best"]["step_seconds"]))

    def probes(self, probe):
        self.lines.append(("probes", probe))

    def ends(self, config, record, note):
        self.lines.append(("ends", config, record is not None, note))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def walk(tmp_path, log):
    def walk(configs, check=lambda: None, **keywords) -> SweepEnd:
        @contextlib.contextmanager
        def alone():
            check()
            yield Company()

        log.lines.clear()
        keywords["alone"] = alone
        return sweep(configs, tmp_path / "workspace", QUICK, log, **keywords)

    return walk


def measured(end: SweepEnd) -> list:
    return [config_of(json.loads(json.dumps(record))) for record in end.records]


def test_a_grid_is_measured_in_order_and_then_recalled(walk, configs, measurer, log):
    first = walk(configs)
    assert measurer.taken() == configs
    assert measured(first) == configs
    assert (first.measured, first.failures) == (4, {})
    steps = [("starts", i, 4, 5 - i, c) for i, c in enumerate(configs, start=1)]
    ends = [("ends", c, True, "") for c in configs]
    assert log.lines == [line for pair in zip(steps, ends, strict=True) for line in pair]

    second = walk(configs)
    assert measurer.taken() == []
    assert (second.measured, second.failures) == (0, {})
    assert json.dumps(second.records) == json.dumps(first.records)
    assert log.lines == [("recalls", c, float(i)) for i, c in enumerate(configs, start=1)]


def test_only_what_is_new_in_a_grid_is_measured(walk, configs, measurer, log):
    walk([configs[0], configs[2]])
    measurer.taken()
    end = walk(configs)
    assert measurer.taken() == [configs[1], configs[3]]
    assert measured(end) == configs
    assert end.measured == 2
    starts = [line[1:] for line in log.lines if line[0] == "starts"]
    assert starts == [(2, 4, 2, configs[1]), (4, 4, 1, configs[3])]
    assert [line[:2] for line in log.lines if line[0] == "recalls"] == [
        ("recalls", configs[0]),
        ("recalls", configs[2]),
    ]
    assert [line[0] for line in log.lines] == [
        *("recalls", "starts", "ends", "recalls", "starts", "ends")
    ]


def test_a_changed_recipe_is_measured_beside_the_old_one(walk, configs, measurer):
    walk(configs[:1])
    recipe = dataclasses.replace(configs[0].recipe, learning_rate=1.0)
    changed = dataclasses.replace(configs[0], recipe=recipe)
    reworded = dataclasses.replace(
        configs[0], recipe=dataclasses.replace(configs[0].recipe, note="better said")
    )
    measurer.taken()
    assert walk([changed, configs[0], reworded]).measured == 1
    assert measurer.taken() == [changed]


def test_the_folder_for_logs_stands_in_the_workspace(walk, configs, measurer, tmp_path):
    walk(configs[:1])
    assert measurer.arguments == {"effort": QUICK, "scratch": tmp_path / "workspace" / "sessions"}


def test_the_workspace_may_be_named_from_here(configs, measurer, log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sweep(configs[:2], Path("here"), QUICK, log).measured == 2
    assert measurer.arguments["scratch"] == tmp_path / "here" / "sessions"
    assert incomplete(configs, Path("here")) == configs[2:]
    assert len(read_records(tmp_path / "here")[0]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_repository_without_a_commit_is_no_hindrance(configs, measurer, walk, tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert walk(configs[:1]).measured == 1


def test_what_a_setting_is_doing_is_passed_on(walk, configs, measurer, log):
    measurer.probe = Probe(
        purpose=Purpose.TIMING,
        micro_batch_size=4,
        low=1,
        high=2,
        high_steps=1,
        compile=False,
        deadline_seconds=9.0,
    )
    walk(configs[:1])
    assert [line[0] for line in log.lines] == ["starts", "probes", "ends"]
    assert log.lines[1] == ("probes", measurer.probe)


@pytest.mark.parametrize("failing", [[0], [3], [1, 2], [0, 1, 2, 3]])
def test_a_failure_does_not_stop_the_others_and_is_tried_again(
    failing, walk, configs, measurer, log
):
    measurer.errors = {configs[i].label: MeasurementError(f"cause {i}") for i in failing}
    rest = [c for i, c in enumerate(configs) if i not in failing]
    end = walk(configs)
    assert measurer.taken() == configs
    assert measured(end) == rest
    assert end.measured == len(rest)
    assert end.failures == {configs[i].method.label: f"cause {i}" for i in failing}
    failed = [("ends", configs[i], False, f"cause {i}") for i in failing]
    assert [line for line in log.lines if line[0] == "ends" and not line[2]] == failed

    measurer.errors.clear()
    again = walk(configs)
    assert measurer.taken() == [configs[i] for i in failing]
    assert measured(again) == configs
    assert (again.measured, again.failures) == (len(failing), {})


def test_a_failure_leaves_no_result(walk, configs, measurer, tmp_path):
    measurer.errors = {configs[1].label: MeasurementError("cause")}
    walk(configs)
    records, unreadable = read_records(tmp_path / "workspace")
    assert len(records) == 3
    assert unreadable == []
    assert incomplete(configs, tmp_path / "workspace") == [configs[1]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_keeps_what_is_finished(error, walk, configs, measurer, tmp_path):
    measurer.errors = {configs[2].label: error("stop")}
    with pytest.raises(error):
        walk(configs)
    assert measurer.taken() == configs[:3]
    assert incomplete(configs, tmp_path / "workspace") == configs[2:]
    records, unreadable = read_records(tmp_path / "workspace")
    assert len(records) == 2
    assert unreadable == []

    measurer.errors.clear()
    end = walk(configs)
    assert measurer.taken() == configs[2:]
    assert measured(end) == configs
    assert end.measured == 2


def test_the_machine_is_checked_before_anything_is_measured(walk, configs, measurer, log):
    def refuse():
        raise HardwareMismatchError("no GPU")

    with pytest.raises(HardwareMismatchError, match=r"^no GPU$"):
        walk(configs, check=refuse)
    assert measurer.taken() == []
    assert [line[0] for line in log.lines] == ["starts"]


def test_the_machine_is_not_checked_for_what_is_known(walk, configs, measurer):
    walk(configs)
    checks = []
    assert walk(configs, check=lambda: checks.append(1)).measured == 0
    assert checks == []


def test_results_are_recalled_on_a_machine_that_will_not_do(walk, configs, measurer):
    def refuse():
        raise HardwareMismatchError("no GPU")

    walk(configs[:2])
    measurer.taken()
    assert len(walk(configs[:2], check=refuse).records) == 2
    with pytest.raises(HardwareMismatchError, match=r"^no GPU$"):
        walk(configs[:3], check=refuse)
    assert measurer.taken() == []


@pytest.mark.parametrize("failing", [0, 1])
def test_those_left_count_down_past_a_failure(failing, walk, configs, measurer, log):
    measurer.errors = {configs[failing].label: MeasurementError("cause")}
    walk(configs)
    assert [line[3] for line in log.lines if line[0] == "starts"] == [4, 3, 2, 1]


def test_what_is_incomplete_is_told_without_measuring(configs, measurer, tmp_path):
    assert incomplete(configs, tmp_path / "new") == configs
    assert measurer.taken() == []


def test_an_unusable_workspace_is_refused_with_advice(configs, measurer, log, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AcademicPretrainingError) as caught:
        sweep(configs, tmp_path / "file", QUICK, log)
    start = re.escape(f"the workspace {tmp_path / 'file'} cannot be used (")
    end = re.escape(
        "): free it, or name another folder with TANGO_WORKSPACE_DIR; what it holds is kept, and "
        "the same command goes on"
    )
    assert re.fullmatch(f"{start}.+{end}", str(caught.value))
    assert measurer.taken() == []


REFUSED = [
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/gone/python"),
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    PermissionError(errno.EACCES, "Permission denied", "/elsewhere/rank0.log"),
    OSError(errno.ENOSPC, "No space left on device", "/elsewhere/tmp"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
]


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
def test_what_the_system_refuses_one_setting_does_not_end_the_grid(
    error, walk, configs, measurer, tmp_path
):
    measurer.errors = {configs[1].label: error}
    end = walk(configs)
    assert measured(end) == [configs[0], *configs[2:]]
    cause = f"{configs[1].label}: not measured: {type(error).__name__}: {error}"
    assert end.failures == {configs[1].method.label: cause}
    assert incomplete(configs, tmp_path / "workspace") == [configs[1]]
    left = {path.name for path in (tmp_path / "workspace").iterdir()}
    assert left == {"cache", "locks"}
    measurer.errors.clear()
    assert walk(configs).measured == 1


def test_the_same_ends_the_grid_where_the_workspace_takes_no_more(
    walk, configs, measurer, monkeypatch, tmp_path
):
    def check(folder):
        assert folder == tmp_path / "workspace"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("experiments.steps.check_takes_more", check)
    measurer.errors = {configs[1].label: OSError("any")}
    workspace = tmp_path / "workspace"
    advice = re.escape(f"the workspace {workspace} cannot be used ([Errno 28] No space left")
    with pytest.raises(AcademicPretrainingError, match=f"^{advice}"):
        walk(configs)
    assert measurer.taken() == configs[:2]
    assert incomplete(configs, workspace) == configs[1:]


WALK = """
import sys
from pathlib import Path
import sweeping
from academic_pretraining.benchmarking.effort import QUICK
from experiments import steps
from experiments.command_line import answer
from experiments.report import Progress
from experiments.sweep import sweep

def main():
    steps.measure = sweeping.Measurer()
    configs = sweeping.configs.__wrapped__()
    print(sweep(configs, Path("workspace"), QUICK, Progress()).measured)

sys.exit(answer(lambda called, **_: (called(), []), main, [], stopped=""))
"""


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&1 >out | true", "2>&-"])
def test_a_grid_goes_on_where_its_progress_cannot_be_told(tmp_path, configs, redirection):
    tests = Path(__file__).parents[1]
    shell = ["bash", "-c", f'exec >out; "$@" {redirection}; exit "${{PIPESTATUS[0]}}"', "bash"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", WALK],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
    )
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == "4\n"
    assert incomplete(configs, tmp_path / "workspace") == []


def test_a_busy_gpu_costs_a_setting_its_result_and_no_more(walk, configs, measurer):
    answers = iter([None, DeviceBusyError("GPU 0 has 9.0 GiB in use"), None])

    def check():
        if error := next(answers):
            raise error

    end = walk(configs[:3], check=check)
    assert end.measured == 2
    assert end.failures == {configs[1].method.label: "GPU 0 has 9.0 GiB in use"}
    assert walk(configs[:3]).measured == 1


def test_a_limited_search_does_not_do_for_a_whole_one(walk, configs, measurer, tmp_path):
    limits = {"timing_seconds": 1.0}
    assert walk(configs, limits=limits).measured == 4
    assert walk(configs, limits=limits).measured == 0
    workspace = tmp_path / "workspace"
    assert incomplete(configs, workspace, limits) == []
    assert incomplete(configs, workspace) == configs
    assert {str(record["limits"]) for record in read_records(workspace)[0]} == {str(limits)}
    assert walk(configs[:1]).measured == 1
    assert walk(configs, limits=limits).measured == 0


def test_beside_others_is_measured_only_what_has_no_result(walk, configs, measurer, tmp_path):
    limits = {"timing_seconds": 1.0}
    workspace = tmp_path / "workspace"
    assert walk(configs[:1], limits=limits).measured == 1
    end = walk(configs[:3], limits=limits, allow_busy=True)
    assert (end.measured, len(end.records)) == (2, 3)
    assert [record["limits"] for record in end.records] == [
        limits,
        *[limits | {"allow_busy_gpus": True}] * 2,
    ]
    assert walk(configs[:3], limits=limits, allow_busy=True).measured == 0
    assert incomplete(configs[:3], workspace, limits, allow_busy=True) == []
    # Alone they are measured in any case.
    assert incomplete(configs[:3], workspace, limits) == configs[1:3]
    assert walk(configs[:3], limits=limits).measured == 2
