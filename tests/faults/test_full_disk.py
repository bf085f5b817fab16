"""Disks that fill under a worker; test_storage.py has those that fill under the workspace."""

import dataclasses
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from academic_pretraining.benchmarking import storage
from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.failures import classify
from academic_pretraining.benchmarking.launch import launch, run_session
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.probes import Outcome, Purpose
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.errors import MeasurementError

FULL = OSError(errno.ENOSPC, "No space left on device")
# What PyTorch says of it, tried with /dev/full.
OF_A_CHECKPOINT = RuntimeError(
    "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"
)


def _raise(error: Exception):
    raise error


def test_an_error_of_a_full_disk_is_told_as_such(tmp_path):
    for error in (FULL, OSError(errno.EDQUOT, "Disk quota exceeded")):
        failure = classify(error, tmp_path)
        assert failure.outcome is Outcome.CRASHED
        assert failure.cause == f"the disk is full: OSError: {error}"
        # Not soon, and the next setting meets the same disk.
        assert not failure.transient


def test_an_error_that_conceals_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    assert classify(OF_A_CHECKPOINT, tmp_path).cause == f"RuntimeError: {OF_A_CHECKPOINT}"
    monkeypatch.setattr(storage, "check_takes_more", lambda folder: _raise(FULL))
    failure = classify(OF_A_CHECKPOINT, tmp_path)
    assert failure.cause == f"the disk is full: RuntimeError: {OF_A_CHECKPOINT}"
    assert not failure.transient


def test_a_compilation_that_a_full_disk_ended_is_no_fault_of_the_compiler():
    def full(graph, inputs):
        raise FULL

    with pytest.raises(Exception) as caught:  # noqa: PT011
        torch.compile(lambda x: x + 1, backend=full)(torch.ones(2))
    assert type(caught.value).__module__.startswith("torch._dynamo")
    failure = classify(caught.value)
    assert failure.outcome is Outcome.CRASHED
    assert failure.cause.startswith("the disk is full: ")


def test_an_unreachable_folder_is_not_taken_for_a_full_disk(tmp_path):
    assert classify(ValueError("mine"), tmp_path / "nowhere").cause == "ValueError: mine"


def test_a_failure_that_found_no_room_is_read_as_a_full_disk(tmp_path):
    path = tmp_path / "rank3.failure.json"
    storage.leave_failure(path, {"cause": "mine"})
    assert storage.read_failure(path) == {"cause": "mine"}
    path.unlink()
    (tmp_path / "rank3.failure.partial").symlink_to("/dev/full")
    storage.leave_failure(path, {"cause": "mine"})
    failure = storage.read_failure(path)
    assert failure["cause"] == "the disk is full: rank3 had no room to say what failed"
    assert failure["log"] == str(tmp_path / "rank3.log")


@pytest.mark.slow
def test_a_disk_that_fills_under_the_events_is_the_cause(altered_session, tiny_config):
    session = altered_session("full_disks.under_the_events", tiny_config(), ranks="0")
    [result] = session.end.results
    assert result.outcome is Outcome.CRASHED
    assert result.cause == "the disk is full: rank0 had no room to say what failed"
    assert result.log == str(session.directory / "rank0.log")
    assert not result.transient
    [mark] = session.directory.glob("rank0.fault")
    assert session.ended_at - float(mark.read_text()) < 25.0


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """Give a folder on a disk of its own of 8 MiB; only the superuser can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_checkpoint_that_fills_a_real_disk(
    small_disk, alter, monkeypatch, tiny_config, living_in_group
):
    alter(monkeypatch, "full_disks.under_the_checkpoint")
    monkeypatch.setenv("FAULTY_RANKS", "0")
    effort = dataclasses.replace(QUICK, saves=True)
    directory = small_disk / "session"
    directory.mkdir()
    config = tiny_config()
    end = run_session(launch(config.hardware, directory=directory), config, effort, [])
    assert storage.is_full(small_disk)
    *_, last = end.results
    assert last.probe.purpose is Purpose.SAVING
    assert last.outcome is Outcome.CRASHED
    assert last.cause.startswith("the disk is full: ")
    assert living_in_group(int((directory / "rank0.group").read_text())) == []


@pytest.mark.slow
@pytest.mark.thorough
def test_a_disk_that_fills_under_the_log_costs_the_setting_its_result(
    tmp_path, alter, monkeypatch, tiny_config
):
    alter(monkeypatch, "full_disks.under_the_log")
    monkeypatch.setenv("FAULTY_RANKS", "1")
    with pytest.raises(MeasurementError) as caught:
        measure(tiny_config(), QUICK, sessions=Sessions(tmp_path))
    assert "the disk is full: rank1 had no room to say what failed (log: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    # Not tried twice.
    assert len(list(tmp_path.glob("session-*"))) == 1
