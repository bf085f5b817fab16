"""Results that were damaged, and disks that take no more."""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.errors import AcademicPretrainingError
from experiments import sweep as sweep_module
from experiments.sweep import sweep
from experiments.workspace import incomplete, read_records

KEPT = "what it holds is kept, and the same command goes on"


@pytest.fixture
def workspace(configs, measurer, silent, tmp_path) -> Path:
    """Give a workspace with all results but the last."""
    folder = tmp_path / "workspace"
    sweep(configs[:-1], folder, QUICK, silent)
    measurer.taken()
    return folder


def results(workspace: Path) -> list[Path]:
    return sorted((workspace / "cache").iterdir())


def truncate(folder: Path) -> None:
    data = folder / "data.json"
    data.write_bytes(data.read_bytes()[:100])


def zero(folder: Path) -> None:
    """As a file system leaves a file whose content was never written before a power cut."""
    data = folder / "data.json"
    data.write_bytes(bytes(data.stat().st_size))


def empty(folder: Path) -> None:
    (folder / "data.json").write_text("")


def change(folder: Path) -> None:
    data = folder / "data.json"
    data.write_text(json.dumps(json.loads(data.read_text()) | {"measurement": {}}))


def lose_data(folder: Path) -> None:
    (folder / "data.json").unlink()


def lose_metadata(folder: Path) -> None:
    (folder / "cache-metadata.json").unlink()


def lose_everything(folder: Path) -> None:
    shutil.rmtree(folder)


def make_folder(folder: Path) -> None:
    (folder / "data.json").unlink()
    (folder / "data.json").mkdir()


NAMED = (truncate, zero, empty, change, lose_data, lose_metadata, make_folder)


@pytest.mark.parametrize("damage", [*NAMED, lose_everything])
def test_a_damaged_result_is_measured_again_and_costs_no_other(
    damage, workspace, configs, measurer, silent
):
    damaged = results(workspace)[0]
    damage(damaged)
    records, unreadable = read_records(workspace)
    assert len(records) == len(configs) - 2
    assert [found.path.parent for found in unreadable] == [damaged] * (damage in NAMED)
    missing = incomplete(configs, workspace)
    assert len(missing) == 2
    end = sweep(configs, workspace, QUICK, silent)
    assert measurer.taken() == missing
    assert (len(end.records), end.failures) == (len(configs), {})
    assert read_records(workspace)[1] == []


@pytest.mark.parametrize("lost", ["locks", "sessions"])
def test_nothing_but_results_is_needed(lost, workspace, configs, measurer, silent):
    (workspace / lost).mkdir(exist_ok=True)
    shutil.rmtree(workspace / lost)
    assert sweep(configs, workspace, QUICK, silent).measured == 1


def refused(configs, workspace, silent) -> str:
    with pytest.raises(AcademicPretrainingError) as caught:
        sweep(configs, workspace, QUICK, silent)
    message = str(caught.value)
    assert message.startswith(f"the workspace {workspace} cannot be used (")
    assert message.endswith(f"): free it, or name another folder with TANGO_WORKSPACE_DIR; {KEPT}")
    assert len(message.splitlines()) == 1
    return message


def test_a_disk_without_room_is_seen_before_anything_is_measured(
    workspace, configs, measurer, silent, monkeypatch
):
    usage = shutil.disk_usage(workspace)
    monkeypatch.setattr(
        sweep_module.shutil, "disk_usage", lambda path: usage._replace(free=5 * 2**20)
    )
    message = refused(configs, workspace, silent)
    assert "(only 5 MiB are free, and a measurement needs 32)" in message
    assert measurer.taken() == []
    # What is known is still told.
    assert len(sweep(configs[:-1], workspace, QUICK, silent).records) == len(configs) - 1


def test_a_disk_that_fills_up_meanwhile_is_said(workspace, configs, measurer, silent):
    full = []

    def fill(config, effort, **how):
        measurement = measure(config, effort, **how)
        # The result's own place takes nothing any more.
        folders = set(workspace.glob("locks/*.lock")) - locks
        [folder] = [workspace / "cache" / path.stem for path in folders]
        folder.mkdir(exist_ok=True)
        (folder / "data.json").symlink_to("/dev/full")
        full.append(folder / "data.json")
        return measurement

    locks = set(workspace.glob("locks/*.lock"))
    measure = measurer.__call__
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("experiments.steps.measure", fill)
        assert "No space left on device" in refused(configs, workspace, silent)
    assert len(read_records(workspace)[0]) == len(configs) - 1
    full[0].unlink()
    assert sweep(configs, workspace, QUICK, silent).measured == 1


@pytest.fixture
def as_a_guest():
    """Be somebody who may not write what is not theirs; root may write everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def read_only(workspace) -> Iterator[Path]:
    """Give the workspace where everybody may read it and nobody write it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "workspace"
        shutil.copytree(workspace, copy)
        folders = [Path(folder), copy, *(p for p in copy.rglob("*") if p.is_dir())]
        for path in folders:
            path.chmod(0o555)
        yield copy
        for path in folders:
            path.chmod(0o755)


def test_a_workspace_that_may_not_be_written_is_said(
    read_only, as_a_guest, configs, measurer, silent
):
    assert re.search("Permission denied|Read-only", refused(configs, read_only, silent))
    assert measurer.taken() == []
    assert len(sweep(configs[:-1], read_only, QUICK, silent).records) == len(configs) - 1


@pytest.mark.parametrize("name", ["locks", "sessions"])
def test_a_place_taken_by_a_file_is_said_at_once(
    name, workspace, configs, measurer, silent, monkeypatch
):
    shutil.rmtree(workspace / name, ignore_errors=True)
    (workspace / name).write_text("mine")
    started = []
    monkeypatch.setattr(silent, "starts", lambda *told: started.append(told))
    said = f"([Errno 17] File exists: '{workspace / name}')"
    assert said in refused(configs, workspace, silent)
    assert (started, measurer.taken()) == ([], [])
    assert (workspace / name).read_text() == "mine"
    # What is known is still told.
    assert len(sweep(configs[:-1], workspace, QUICK, silent).records) == len(configs) - 1


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_said(
    code, workspace, configs, measurer, silent, monkeypatch
):
    def flock(descriptor, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(AcademicPretrainingError) as caught:
        sweep(configs, workspace, QUICK, silent)
    assert str(caught.value) == (
        f"the workspace {workspace} stands on a file system without locks ({os.strerror(code)}), "
        "where two scripts could measure one setting at once: name a folder on another one with "
        "TANGO_WORKSPACE_DIR"
    )
    assert measurer.taken() == []
    # What is known is still told.
    assert len(sweep(configs[:-1], workspace, QUICK, silent).records) == len(configs) - 1


def test_a_lock_that_somebody_holds_is_no_fault(workspace, configs, measurer, silent, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fcntl, "flock", flock)
    end = sweep(configs, workspace, QUICK, silent)
    assert list(end.failures.values()) == ["being measured by another process: left to it"]
    assert measurer.taken() == []
