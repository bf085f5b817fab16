"""Faults of real workers; tests/benchmarking/test_launch_watching.py has what a stand-in plays.

With FAULTS_CSV set, what became of each fault is added there.
"""

import contextlib
import dataclasses
import getpass
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from faulty_ranks import MEMORY, PLAIN, SHARDED, Fault, note

from academic_pretraining.benchmarking.effort import QUICK, Effort
from academic_pretraining.benchmarking.launch import run_session
from academic_pretraining.benchmarking.probes import Outcome
from academic_pretraining.config import config_to_dict
from academic_pretraining.errors import HardwareMismatchError
from academic_pretraining.methods import Method

pytestmark = pytest.mark.slow

# Long enough for two processes that share the cores with others to come to the fault.
HASTY = Effort(micro_batch_sizes=(1,), most_timings=1, timing_deadline_seconds=8.0)
CACHE = f"torchinductor_{getpass.getuser()}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggedFault(Fault):
    """A fault, what the log of a faulty rank must hold, and whether another one is like it."""

    logged: str = "Traceback"
    thorough: bool = False


FAULTS = [
    # In the place of a probe, while rank 0 waits in a collective.
    LoggedFault(
        name="raises",
        outcome=Outcome.CRASHED,
        cause="ZeroDivisionError: the original cause",
        thorough=True,
    ),
    LoggedFault(
        name="raises_unpicklable",
        outcome=Outcome.CRASHED,
        cause="ValueError: what no process can be sent",
    ),
    LoggedFault(name="exits", outcome=Outcome.CRASHED, cause="SystemExit: 7"),
    LoggedFault(
        name="is_killed",
        outcome=Outcome.CRASHED,
        cause="rank1 was killed, perhaps by the host for want of memory",
        logged="",
    ),
    LoggedFault(
        name="is_killed_where_nobody_misses_it",
        outcome=Outcome.CRASHED,
        cause="rank1 was killed, perhaps by the host for want of memory",
        logged="",
        thorough=True,
    ),
    LoggedFault(
        name="segfaults",
        outcome=Outcome.CRASHED,
        cause="rank1 died: Fatal Python error: Segmentation fault",
        logged="faults.py",
    ),
    LoggedFault(
        name="hangs",
        outcome=Outcome.HUNG,
        cause="no answer within 8 s",
        logged="_sleep_for_ever",
        effort=HASTY,
    ),
    # What hangs is not the compilation.
    LoggedFault(
        name="hangs",
        outcome=Outcome.HUNG,
        cause="no answer within 8 s",
        logged="_sleep_for_ever",
        method=Method(free_lunch=True),
        effort=HASTY,
        thorough=True,
    ),
    LoggedFault(
        name="hangs_with_the_interpreter_locked",
        outcome=Outcome.HUNG,
        cause="no answer within 8 s",
        logged="faults.py",
        effort=HASTY,
        thorough=True,
    ),
    LoggedFault(
        name="runs_out_of_memory", outcome=Outcome.OUT_OF_MEMORY, cause=MEMORY, thorough=True
    ),
    LoggedFault(
        name="lacks_memory_for_cublas",
        outcome=Outcome.OUT_OF_MEMORY,
        cause="RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
        thorough=True,
    ),
    LoggedFault(
        name="lacks_memory_for_nccl",
        outcome=Outcome.OUT_OF_MEMORY,
        cause="RuntimeError: NCCL error: unhandled cuda error",
        thorough=True,
    ),
    LoggedFault(
        name="loses_nccl",
        outcome=Outcome.CRASHED,
        cause="RuntimeError: NCCL error: remote process exited",
        thorough=True,
    ),
    LoggedFault(
        name="runs_out_of_host_memory",
        outcome=Outcome.HOST_OUT_OF_MEMORY,
        cause="RuntimeError: ",
    ),
    # Inside a real training.
    *(
        LoggedFault(
            name=f"runs_out_of_memory_in_{place}",
            outcome=Outcome.OUT_OF_MEMORY,
            cause=MEMORY,
            ranks=ranks,
            method=method,
            thorough=thorough,
        )
        for place, ranks, method, thorough in (
            ("forward", "1", PLAIN, True),
            ("backward", "1", PLAIN, True),
            ("the_optimizer", "1", SHARDED, False),
            ("forward", "0,1", SHARDED, True),
            # Where the others wait for this rank's part.
            ("all_reduce", "1", PLAIN, False),
            ("all_gather", "1", SHARDED, True),
            ("reduce_scatter", "0", SHARDED, True),
        )
    ),
    LoggedFault(
        name="hangs_while_loading",
        outcome=Outcome.HUNG,
        cause="no answer within 8 s",
        logged="_sleep_for_ever",
        effort=HASTY,
    ),
]


@pytest.fixture(
    scope="module",
    params=[pytest.param(f, marks=[pytest.mark.thorough] * f.thorough) for f in FAULTS],
    ids=str,
)
def fault(request) -> LoggedFault:
    return request.param


@pytest.fixture(scope="module")
def temporary(fault, tmp_path_factory) -> Path:
    """Give the folder for temporary files that a session is run with."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def session(fault, temporary, altered_session, tiny_config):
    config = tiny_config(fault.method)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TMPDIR", str(temporary))
        return altered_session(f"faults.{fault.name}", config, fault.effort, fault.ranks)


def test_the_outcome_is_told_apart_with_the_cause_of_the_rank_that_failed(fault, session):
    assert not session.end.finished
    [result] = session.end.results
    note(fault, result, session.ended_at - max(session.struck_at) if session.struck_at else None)
    assert result.outcome is fault.outcome
    assert result.cause.startswith(fault.cause)
    assert result.probe.micro_batch_size == 1
    if fault.outcome is not Outcome.HUNG:
        logs = [str(session.directory / f"rank{rank}.log") for rank in fault.ranks.split(",")]
        assert result.log in logs


def test_it_is_over_before_the_collectives_of_the_others_are(fault, session):
    # torch.distributed would wait for half an hour.
    limit = fault.effort.timing_deadline_seconds if fault.outcome is Outcome.HUNG else 0.0
    assert all(session.ended_at - mark < limit + 25.0 for mark in session.struck_at)
    assert session.struck_at or fault.name == "hangs_while_loading"


def test_no_process_is_left(session, living_in_group):
    groups = {(session.directory / f"rank{r}.group").read_text() for r in range(2)}
    [group] = groups
    assert living_in_group(int(group)) == []
    for rank in range(2):
        pid = int((session.directory / f"rank{rank}.pid").read_text())
        assert not psutil.pid_exists(pid) or _ended(pid)


def test_nothing_temporary_is_left_but_the_cache_of_compilations(session, temporary):
    assert {path.name for path in temporary.iterdir()} <= {CACHE}


def test_the_log_says_what_happened(fault, session):
    for rank in fault.ranks.split(","):
        assert fault.logged in (session.directory / f"rank{rank}.log").read_text()


def test_a_hang_leaves_the_stacks_of_those_that_wait(fault, session):
    if fault.outcome is not Outcome.HUNG:
        pytest.skip("nobody waits that long")
    log = (session.directory / "rank0.log").read_text()
    assert log.count("Timeout (0:00:07)!") == 1
    waits = "all_gather" if fault.name == "hangs_while_loading" else "barrier"
    assert f" in {waits}\n" in log.partition("Timeout")[2]


def test_bytes_that_were_missing_are_kept(fault, session):
    [result] = session.end.results
    if fault.cause == MEMORY:
        missing = (2 * 2**30, 3 * 2**29)
    elif fault.outcome is Outcome.HOST_OUT_OF_MEMORY:
        missing = (2**50, None)
    elif fault.name == "lacks_memory_for_nccl":
        missing = (8, None)
    else:
        missing = (None, None)
    assert (result.requested_bytes, result.free_bytes) == missing


def test_the_others_wait_in_the_collective_that_fails(fault, session):
    counts = {path.stem: int(path.read_text()) for path in session.directory.glob("*.collectives")}
    if not counts:
        pytest.skip("no collective fails")
    faulty, other = f"rank{fault.ranks}", f"rank{1 - int(fault.ranks)}"
    assert counts[faulty] == 2
    # Sharded layers are gathered ahead.
    assert counts[other] >= 2
    assert "OutOfMemoryError" not in (session.directory / f"{other}.log").read_text()


def test_what_rank_0_said_before_is_kept(session):
    free_lunch = session.config.method.free_lunch
    assert session.end.environment["kernels"] == ("sdpa" if free_lunch else "eager")
    assert session.end.environment["model_flops_per_example"] > 0
    assert session.end.start_seconds > 0


def test_the_only_rank_is_named_when_it_is_killed(altered_session, tiny_config):
    session = altered_session("faults.is_killed", tiny_config(workers=1), ranks="0")
    [result] = session.end.results
    assert result.outcome is Outcome.CRASHED
    assert result.cause == "rank0 was killed, perhaps by the host for want of memory"
    assert result.log == str(session.directory / "rank0.log")


@pytest.mark.thorough
def test_a_session_whose_folder_is_removed_ends(altered_launch, tiny_config):
    launched = altered_launch("faults.loses_its_folder", tiny_config())
    end = run_session(launched, tiny_config(), QUICK, [])
    [result] = end.results
    assert result.outcome is Outcome.CRASHED
    assert result.cause == f"the session's folder {launched.directory} is gone"
    assert launched.process.poll() is not None


def test_other_hardware_than_declared_is_raised(altered_session, tiny_config):
    with pytest.raises(HardwareMismatchError, match="GPU type a was declared"):
        altered_session("faults.is_on_another_gpu", tiny_config())


PARENT = """
import json, sys
from pathlib import Path
from academic_pretraining.benchmarking.launch import launch, run_session
from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.config import config_from_dict
directory = Path(sys.argv[1])
config = config_from_dict(json.loads(sys.argv[2]))
run_session(launch(config.hardware, directory=directory), config, QUICK, [])
"""


def test_a_session_ends_when_the_script_that_started_it_is_killed(
    tmp_path, monkeypatch, alter, tiny_config, living_in_group
):
    alter(monkeypatch, "faults.hangs")
    monkeypatch.setenv("FAULTY_RANKS", "1")
    folder, temporary = tmp_path / "session", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    config = json.dumps(config_to_dict(tiny_config()))
    group_file = folder / "rank1.group"
    group = None
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder), config])
    try:
        while not (group_file.exists() and group_file.read_text()):
            assert parent.poll() is None
            time.sleep(0.1)
        group = int(group_file.read_text())
        assert _is_alive(group)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert living_in_group(group, 60.0) == []
        assert {path.name for path in temporary.iterdir()} <= {CACHE}
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
