import errno
import json
import os
from pathlib import Path

import pytest
from tango.common.exceptions import StepStateError
from tango.step_info import StepState

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.errors import MeasurementError
from experiments.steps import MeasureContext, is_cached, measure_step, run_step
from experiments.store import RecordWorkspace


@pytest.fixture
def step_of(tmp_path):
    def make(config):
        return measure_step(MeasureContext(config, QUICK, Sessions(tmp_path / "scratch")))

    return make


@pytest.fixture
def data(configs, measurer, tmp_path, step_of):
    """Give the file of a result."""
    step = step_of(configs[0])
    run_step(step, RecordWorkspace(tmp_path))
    return tmp_path / "cache" / step.unique_id / "data.json"


def test_nothing_is_kept_but_results_and_locks(data, tmp_path):
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "locks"]
    assert sorted(path.name for path in data.parent.iterdir()) == [
        "cache-metadata.json",
        "data.json",
    ]


# Has Tango unpickle the result.
METADATA = '{"format": {"type": "tango.format::DillFormat"}, "step": "x"}'


def test_reading_a_result_runs_nothing_of_it(
    configs, data, measurer, tmp_path, step_of, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data.write_text(
        json.dumps({"_dataclass": ["subprocess", "check_call"], "args": ["touch", "called"]})
    )
    data.with_name("cache-metadata.json").write_text(METADATA)
    # A pickle that would touch the file, too.
    data.with_name("data.dill").write_bytes(b"cos\nsystem\n(S'touch called'\ntR.")
    workspace = RecordWorkspace(tmp_path)
    assert not is_cached(step_of(configs[0]), workspace)
    measurer.taken()
    run_step(step_of(configs[0]), workspace)
    assert measurer.taken() == [configs[0]]
    assert not (tmp_path / "called").exists()


def test_what_could_not_be_read_is_put_aside(configs, data, tmp_path, step_of):
    data.write_text('{"version": 99, "of": "a later version"}')
    run_step(step_of(configs[0]), RecordWorkspace(tmp_path))
    aside = data.with_name("unreadable.json")
    assert aside.read_text() == '{"version": 99, "of": "a later version"}'
    assert json.loads(data.read_text())["version"] == 1
    data.write_text("{")
    run_step(step_of(configs[0]), RecordWorkspace(tmp_path))
    assert data.with_name("unreadable-2.json").read_text() == "{"
    assert aside.exists()


def test_no_folder_is_made_elsewhere(configs, measurer, tmp_path, step_of, monkeypatch):
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    run_step(step_of(configs[0]), RecordWorkspace(tmp_path))
    assert list(elsewhere.iterdir()) == []


def test_a_result_under_another_settings_name_is_not_taken_for_it(configs, data, tmp_path, step_of):
    other = step_of(configs[1])
    folder = tmp_path / "cache" / other.unique_id
    data.parent.rename(folder)
    assert not is_cached(other, RecordWorkspace(tmp_path))


def test_a_result_is_read_from_its_file_each_time(configs, data, tmp_path, step_of):
    workspace = RecordWorkspace(tmp_path)
    step = step_of(configs[0])
    assert is_cached(step, workspace)
    data.unlink()
    assert not is_cached(step, workspace)
    with pytest.raises(KeyError):
        workspace.step_cache[step]


def test_only_one_may_run_a_step(configs, tmp_path, step_of):
    first, second = RecordWorkspace(tmp_path), RecordWorkspace(tmp_path)
    first.step_starting(step_of(configs[0]))
    with pytest.raises(StepStateError) as caught:
        second.step_starting(step_of(configs[0]))
    assert caught.value.step_state is StepState.RUNNING
    first.step_failed(step_of(configs[0]), ValueError())
    second.step_starting(step_of(configs[0]))
    # Whose process holds it, and no other one that it starts.
    [lock] = second._locks.values()
    assert not os.get_inheritable(lock)


def test_what_another_process_has_just_finished_is_recalled(
    configs, measurer, tmp_path, step_of, monkeypatch
):
    step, workspace = step_of(configs[0]), RecordWorkspace(tmp_path)
    starting = workspace.step_starting

    def late(started):
        # Between the look for a result and the lock.
        run_step(step_of(configs[0]), RecordWorkspace(tmp_path))
        starting(started)

    monkeypatch.setattr(workspace, "step_starting", late)
    assert run_step(step, workspace)["measurement"]
    assert measurer.taken() == [configs[0]]
    assert not step.context.measured


def test_a_result_that_cannot_be_stored_leaves_no_lock(configs, measurer, tmp_path, step_of):
    step, workspace = step_of(configs[0]), RecordWorkspace(tmp_path)
    folder = tmp_path / "cache" / step.unique_id
    folder.mkdir()
    (folder / "data.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        run_step(step, workspace)
    assert not is_cached(step, workspace)
    (folder / "data.json").unlink()
    assert run_step(step_of(configs[0]), RecordWorkspace(tmp_path))["measurement"]


@pytest.mark.parametrize("mode", [0o444, 0o664])
def test_the_lock_file_of_another_user_can_be_locked(configs, tmp_path, step_of, monkeypatch, mode):
    first, second = RecordWorkspace(tmp_path), RecordWorkspace(tmp_path)
    step = step_of(configs[0])
    first.step_starting(step)
    first.step_failed(step, ValueError())
    first.lock_path(step).chmod(mode)
    real = os.open

    def as_another(path, flags, *mode):
        # A superuser may write whatever its mode says.
        if flags & os.O_RDWR and not Path(path).stat().st_mode & 0o020:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", as_another)
    second.step_starting(step)
    with pytest.raises(StepStateError):
        first.step_starting(step)


def test_a_folder_of_another_user_costs_only_its_setting(
    configs, measurer, tmp_path, step_of, monkeypatch
):
    # The tests may be run by root, who may.
    monkeypatch.setattr(os, "access", lambda path, mode: mode & os.W_OK == 0)
    workspace = RecordWorkspace(tmp_path)
    closed = tmp_path / "cache" / step_of(configs[0]).unique_id
    closed.mkdir()
    with pytest.raises(MeasurementError) as caught:
        run_step(step_of(configs[0]), workspace)
    assert str(caught.value) == (
        f"{closed} cannot be read and written: have its owner open it, or name another workspace "
        "with TANGO_WORKSPACE_DIR"
    )
    run_step(step_of(configs[1]), workspace)
    assert measurer.taken() == [configs[1]]


def test_what_cannot_be_looked_for_is_no_result(configs, tmp_path, step_of):
    workspace = RecordWorkspace(tmp_path)
    (tmp_path / "cache" / step_of(configs[0]).unique_id).symlink_to("n" * 300)
    assert not is_cached(step_of(configs[0]), workspace)


def test_a_lock_file_is_for_the_group_where_the_umask_allows_it(configs, tmp_path, step_of):
    workspace, step = RecordWorkspace(tmp_path), step_of(configs[0])
    before = os.umask(0o002)
    try:
        workspace.step_starting(step)
    finally:
        os.umask(before)
    assert workspace.lock_path(step).stat().st_mode & 0o777 == 0o664
