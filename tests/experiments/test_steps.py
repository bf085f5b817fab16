import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from tango.common.exceptions import StepStateError

from academic_pretraining.benchmarking.effort import QUICK, Effort
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.config import config_to_dict
from academic_pretraining.errors import MeasurementError
from academic_pretraining.records import config_of
from experiments.identity import cache_key, library_versions
from experiments.steps import MeasureContext, is_cached, measure_step, run_step
from experiments.store import RecordWorkspace
from experiments.sweep import sweep


def step_of(config, tmp_path, effort=QUICK):
    return measure_step(MeasureContext(config, effort, Sessions(tmp_path / "scratch")))


def test_how_it_is_measured_does_not_change_the_step(configs, tmp_path):
    patient = MeasureContext(
        configs[0], Effort(timing_seconds=99), Sessions(tmp_path / "there"), print
    )
    assert measure_step(patient).unique_id == step_of(configs[0], tmp_path).unique_id


def test_a_step_is_measured_once(configs, measurer, tmp_path):
    workspace = RecordWorkspace(tmp_path)
    step = step_of(configs[0], tmp_path)
    assert not is_cached(step, workspace)
    began = time.time()
    record = run_step(step, workspace)
    assert is_cached(step, workspace)
    assert began <= record["measured_at"] <= time.time()
    assert measurer.taken() == [configs[0]]
    assert measurer.arguments == {"effort": QUICK, "scratch": tmp_path / "scratch"}

    again = run_step(step_of(configs[0], tmp_path), RecordWorkspace(tmp_path))
    assert measurer.taken() == []
    assert json.dumps(again) == json.dumps(record)
    assert config_of(again) == configs[0]
    assert again["versions"] == library_versions(configs[0])
    assert again["key"] == cache_key(configs[0])
    assert not is_cached(step_of(configs[1], tmp_path), workspace)


def test_a_failure_is_raised_and_not_kept(configs, measurer, tmp_path):
    measurer.errors[configs[0].label] = MeasurementError("rank 1 died (log: /tmp/1.log)")
    for _ in range(2):
        step = step_of(configs[0], tmp_path)
        with pytest.raises(MeasurementError, match=r"^rank 1 died \(log: /tmp/1\.log\)$"):
            run_step(step, RecordWorkspace(tmp_path))
        assert not is_cached(step, RecordWorkspace(tmp_path))
    assert measurer.taken() == [configs[0], configs[0]]
    measurer.errors.clear()
    assert run_step(step_of(configs[0], tmp_path), RecordWorkspace(tmp_path))["measurement"]


def test_the_working_directory_is_given_back(configs, measurer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measurer.errors[configs[1].label] = KeyboardInterrupt()
    workspace = RecordWorkspace(tmp_path / "workspace")
    run_step(step_of(configs[0], tmp_path), workspace)
    with pytest.raises(KeyboardInterrupt):
        run_step(step_of(configs[1], tmp_path), workspace)
    assert tmp_path.samefile(".")


@pytest.mark.parametrize("kept", [0, 1, 200])
def test_a_result_that_was_cut_off_is_measured_again(configs, measurer, tmp_path, kept):
    workspace = RecordWorkspace(tmp_path)
    step = step_of(configs[0], tmp_path)
    record = run_step(step, workspace)
    data = tmp_path / "cache" / step.unique_id / "data.json"
    data.write_bytes(data.read_bytes()[:kept])
    again = run_step(step_of(configs[0], tmp_path), RecordWorkspace(tmp_path))
    assert measurer.taken() == [configs[0], configs[0]]
    assert config_of(again) == config_of(record)
    assert json.loads(data.read_text()) == again


# Measures a setting until its standard input is closed.
OTHER = """
import json, sys
from pathlib import Path


from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.config import config_from_dict
from experiments import steps
from academic_pretraining.benchmarking.sessions import Sessions
from experiments.store import RecordWorkspace

folder, config = Path(sys.argv[1]), config_from_dict(json.loads(sys.argv[2]))


def measure(*args, **keywords):
    print("measuring", flush=True)
    sys.stdin.read()
    raise SystemExit


steps.measure = measure
step = steps.measure_step(steps.MeasureContext(config, QUICK, Sessions(folder)))
steps.run_step(step, RecordWorkspace(folder))
"""


@pytest.fixture
def other_process(configs, tmp_path) -> Iterator[None]:
    """Have the second setting measured by somebody else."""
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path), json.dumps(config_to_dict(configs[1]))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert "measuring" in iter(other.stdout.readline, "").__next__()
    yield
    other.communicate(timeout=60)


def test_what_another_process_measures_is_left_to_it(
    configs, measurer, silent, tmp_path, other_process
):
    with pytest.raises(StepStateError):
        run_step(step_of(configs[1], tmp_path), RecordWorkspace(tmp_path))
    end = sweep(configs, tmp_path, QUICK, silent)
    assert measurer.taken() == [configs[0], *configs[2:]]
    assert end.measured == 3
    assert end.failures == {
        configs[1].method.label: "being measured by another process: left to it"
    }
