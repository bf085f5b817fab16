"""Faults of real workers; test_launch_watching.py has those that a stand-in can play."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from academic_pretraining.benchmarking.effort import QUICK, Effort
from academic_pretraining.benchmarking.probes import Outcome
from academic_pretraining.config import config_to_dict
from academic_pretraining.errors import HardwareMismatchError

pytestmark = pytest.mark.slow

HASTY = Effort(micro_batch_sizes=(1,), most_timings=1, timing_deadline_seconds=8.0)

# Each happens on rank 1 while rank 0 waits in a collective, for half an hour if nobody ends it.
FAULTS = {
    "raises": (Outcome.CRASHED, "ZeroDivisionError: the original cause"),
    "exits": (Outcome.CRASHED, "SystemExit: 7"),
    "runs_out_of_memory": (Outcome.OUT_OF_MEMORY, "OutOfMemoryError: CUDA out of memory."),
    "is_killed": (
        Outcome.CRASHED,
        "rank1 was killed, perhaps by the host for want of memory",
    ),
    "hangs": (Outcome.HUNG, "no answer within 8 s"),
}


@pytest.fixture(scope="module", params=FAULTS)
def fault(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def session(fault, altered_session, tiny_config):
    return altered_session(fault, tiny_config(), HASTY if fault == "hangs" else QUICK)


def test_the_outcome_is_told_apart_with_the_cause_of_the_rank_that_failed(fault, session):
    outcome, cause = FAULTS[fault]
    assert not session.end.finished
    [result] = session.end.results
    assert result.outcome is outcome
    assert result.cause.startswith(cause)
    assert result.cause
    assert result.probe.micro_batch_size == 1
    if fault != "hangs":
        assert result.log == str(session.directory / "rank1.log")


def test_no_process_is_left(session, living_in_group):
    groups = {(session.directory / f"rank{r}.group").read_text() for r in range(2)}
    [group] = groups
    assert living_in_group(int(group)) == []
    for rank in range(2):
        pid = int((session.directory / f"rank{rank}.pid").read_text())
        assert not psutil.pid_exists(pid) or _ended(pid)


def test_the_log_says_what_happened(fault, session):
    log = (session.directory / "rank1.log").read_text()
    if fault in ("raises", "exits", "runs_out_of_memory"):
        assert "Traceback" in log
    if fault == "hangs":
        # The stacks of both, the one that hangs and the one that waits for it.
        assert "_sleep_for_ever" in log
        assert "barrier" in (session.directory / "rank0.log").read_text()


def test_bytes_that_were_missing_are_kept(fault, session):
    [result] = session.end.results
    missing = (2 * 2**30, 3 * 2**29) if fault == "runs_out_of_memory" else (None, None)
    assert (result.requested_bytes, result.free_bytes) == missing


def test_what_rank_0_said_before_is_kept(session):
    assert session.end.environment["kernels"] == "eager"
    assert session.end.environment["model_flops_per_example"] > 0
    assert session.end.start_seconds > 0


def test_other_hardware_than_declared_is_raised(altered_session, tiny_config):
    with pytest.raises(HardwareMismatchError, match="GPU type a was declared"):
        altered_session("is_on_another_gpu", tiny_config())


PARENT = """
import json, sys
from pathlib import Path
from academic_pretraining.benchmarking.launch import run_session
from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.config import config_from_dict
directory = Path(sys.argv[1])
run_session(config_from_dict(json.loads(sys.argv[2])), QUICK, [], directory=directory)
"""


def test_a_session_ends_when_the_script_that_started_it_is_killed(
    tmp_path, monkeypatch, alter, tiny_config, living_in_group
):
    alter(monkeypatch, "hangs")
    config = json.dumps(config_to_dict(tiny_config()))
    group_file = tmp_path / "rank1.group"
    group = None
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), config])
    try:
        while not (group_file.exists() and group_file.read_text()):
            assert parent.poll() is None
            time.sleep(0.1)
        group = int(group_file.read_text())
        assert _is_alive(group)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert living_in_group(group, 60.0) == []
    finally:
        parent.kill()
        if group is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
