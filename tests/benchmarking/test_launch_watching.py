"""The parent's side of launch.py, with a stand-in for the child that needs no torch."""

import dataclasses
import json
import os
import shutil
import sys
import textwrap
import time
from pathlib import Path

import pytest

from academic_pretraining.benchmarking import launch, post_mortem
from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.launch import SessionEnd, run_session
from academic_pretraining.benchmarking.probes import Outcome, Probe, ProbeResult, Purpose
from academic_pretraining.config import config_to_dict

PROLOGUE = """\
#!{python}
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[-2])

def tell(**event):
    with (folder / "events.jsonl").open("a") as stream:
        stream.write(json.dumps(event | dict(time=time.time())) + "\\n")

def fail(rank, outcome, cause, when):
    failure = dict(outcome=outcome, cause=cause, time=when, log=f"rank{{rank}}.log")
    failure |= dict(requested_bytes=None, free_bytes=None, transient=True)
    failure |= dict(misses_another="Connection" in cause)
    (folder / f"rank{{rank}}.partial").write_text(json.dumps(failure))
    (folder / f"rank{{rank}}.partial").rename(folder / f"rank{{rank}}.failure.json")

signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / "group").write_text(str(os.getpgid(0)))

def name(rank, number):
    (folder / f"rank{{rank}}.named").write_text(str(number))
    (folder / f"rank{{rank}}.named").rename(folder / f"rank{{rank}}.pid")

def come_and_wait():
    for rank in range(2):
        (folder / f"rank{{rank}}.ready").touch()
    while not (folder / "request.json").exists():
        time.sleep(0.01)

PROBE = {probe!r}
RESULT = {result!r}
come_and_wait()
"""


def a_probe(**changes) -> Probe:
    asked = {"purpose": Purpose.TIMING, "micro_batch_size": 4, "high": 4, "high_steps": 6}
    return Probe(**{**asked, "compile": False, "deadline_seconds": 60.0, **changes})


@pytest.fixture
def play(tmp_path, monkeypatch, tiny_config):
    """Run a session whose child is a few lines of Python."""

    def run(lines: str, probe: Probe | None = None, **how) -> SessionEnd:
        result = ProbeResult(probe=probe or a_probe(), outcome=Outcome.OK, seconds=1.5)
        stand_in = tmp_path / "python"
        # As JSON, for the enumerations stand for their values.
        values = {"probe": result.to_dict()["probe"], "result": result.to_dict()}
        values = json.loads(json.dumps(values))
        text = PROLOGUE.format(python=sys.executable, **values) + textwrap.dedent(lines)
        stand_in.write_text(text)
        stand_in.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(stand_in))
        config = tiny_config()
        launched = launch.launch(config.hardware, directory=tmp_path)
        return run_session(launched, config, QUICK, how.pop("history", []), **how)

    return run


def test_a_session_that_ends_by_itself_is_finished(play):
    begun = []
    end = play(
        """
        tell(kind="environment", kernels="eager")
        tell(kind="start", probe=PROBE)
        tell(kind="result", result=RESULT)
        tell(kind="done")
        """,
        on_probe=begun.append,
    )
    assert end.finished
    assert end.environment["kernels"] == "eager"
    assert begun == [a_probe()]
    [result] = end.results
    assert (result.probe, result.outcome, result.seconds) == (a_probe(), Outcome.OK, 1.5)


def test_the_request_says_everything(play, tmp_path, tiny_config):
    history = [ProbeResult(probe=a_probe(), outcome=Outcome.OUT_OF_MEMORY)]
    play('tell(kind="done")', history=history)
    request = json.loads((tmp_path / "request.json").read_text())
    assert request["config"] == json.loads(json.dumps(config_to_dict(tiny_config())))
    assert [ProbeResult.from_dict(r) for r in request["history"]] == history
    assert request["effort"]["timing_seconds"] == QUICK.timing_seconds


def test_a_restart_is_neither_an_end_nor_a_failure(play):
    end = play('tell(kind="result", result=RESULT); tell(kind="restart"); time.sleep(60)')
    assert not end.finished
    assert [r.outcome for r in end.results] == [Outcome.OK]


def test_an_event_that_is_half_written_is_waited_for(play):
    end = play(
        """
        text = json.dumps(dict(kind="result", result=RESULT)) + "\\n"
        with (folder / "events.jsonl").open("a") as stream:
            for part in (text[:50], text[50:]):
                stream.write(part)
                stream.flush()
                time.sleep(0.5)
        tell(kind="done")
        """
    )
    assert end.finished
    assert len(end.results) == 1


def test_last_words_of_a_launcher_are_the_cause(play, tmp_path):
    end = play('tell(kind="start", probe=PROBE); print("some\\nlast words", flush=True)')
    [result] = end.results
    assert (result.outcome, result.cause) == (Outcome.CRASHED, "last words")
    assert result.probe == a_probe()
    assert result.log == str(tmp_path / "launcher.log")


def test_ranks_that_all_died_of_a_signal_are_named(play, tmp_path):
    end = play(
        """
        import subprocess
        dead = subprocess.Popen(["true"])
        dead.wait()
        name(0, dead.pid)
        name(1, dead.pid)
        print("[rank0]: torchrunx.utils.errors.WorkerFailedError: Signal 9 (SIGKILL)", flush=True)
        """
    )
    [result] = end.results
    assert result.outcome is Outcome.CRASHED
    assert result.cause == "rank0 was killed, perhaps by the host for want of memory"
    assert result.log == str(tmp_path / "rank0.log")


def test_a_launcher_that_dies_silently_is_a_crash(play):
    [result] = play("os.kill(os.getpid(), signal.SIGKILL)").results
    assert result.outcome is Outcome.CRASHED
    assert result.cause == "the launcher ended without a word"


@pytest.mark.parametrize("first", [0, 1])
def test_the_earliest_of_several_crashes_is_the_cause(play, first):
    end = play(f'fail({first}, "crashed", "first", 1.0); fail({1 - first}, "crashed", "then", 2.0)')
    [result] = end.results
    assert (result.outcome, result.cause) == (Outcome.CRASHED, "first")
    assert result.log == f"rank{first}.log"


@pytest.mark.parametrize("cause", ["Connection closed by peer", "in a collective"])
def test_memory_that_ran_out_comes_before_the_crash_that_it_led_to(play, monkeypatch, cause):
    # The rank that was left alone may be the first to say so.
    missed = "Connection" in cause
    monkeypatch.setattr(post_mortem, "_GRACE_SECONDS", 0.1 if missed else 4.0)
    monkeypatch.setattr(post_mortem, "_DEATH_SECONDS", 60.0 if missed else 0.0)
    end = play(
        f"""
        name(0, os.getpid())
        name(1, os.getpid())
        fail(0, "crashed", {cause!r}, 1.0)
        time.sleep(1.0)
        fail(1, "out of memory", "OutOfMemoryError", 2.0)
        time.sleep(60)
        """
    )
    [result] = end.results
    assert (result.outcome, result.cause) == (Outcome.OUT_OF_MEMORY, "OutOfMemoryError")


def test_a_killed_rank_that_takes_its_time_to_be_gone_is_named(play, tmp_path):
    # With a GPU to let go of, it is there for longer than its connections.
    end = play(
        """
        import subprocess
        dying = subprocess.Popen(["sleep", "1.5"])
        name(0, os.getpid())
        name(1, dying.pid)
        fail(0, "crashed", "RuntimeError: [pair.cc:547] Connection closed by peer [127.0.0.1]", 1.0)
        dying.wait()
        time.sleep(60)
        """
    )
    [result] = end.results
    assert result.outcome is Outcome.CRASHED
    assert result.cause == "rank1 was killed, perhaps by the host for want of memory"
    assert result.log == str(tmp_path / "rank1.log")


def test_a_connection_that_both_ranks_lost_is_the_cause(play):
    end = play(
        """
        for rank in range(2):
            name(rank, os.getpid())
            fail(rank, "crashed", f"Connection reset by peer of rank{rank}", 1.0 + rank)
        time.sleep(60)
        """
    )
    assert [result.cause for result in end.results] == ["Connection reset by peer of rank0"]


@pytest.mark.parametrize(
    ("compiles", "outcome"), [(True, Outcome.COMPILE_FAILED), (False, Outcome.CRASHED)]
)
def test_only_a_compiled_probe_can_fail_to_compile(play, compiles, outcome):
    lines = 'tell(kind="start", probe=PROBE); fail(0, "compile failed", "no kernel", 1.0)'
    [result] = play(lines, a_probe(compile=compiles)).results
    assert (result.outcome, result.cause) == (outcome, "no kernel")


def test_a_failure_is_of_the_probe_that_begins_while_it_is_looked_at(play, tmp_path, monkeypatch):
    def fails(directory, hardware):
        begins = {
            "kind": "start",
            "time": 0.0,
            "probe": dataclasses.asdict(a_probe(micro_batch_size=7)),
        }
        (tmp_path / "events.jsonl").write_text(json.dumps(begins) + "\n")
        figures = dict.fromkeys(("requested_bytes", "free_bytes"))
        return {"outcome": "crashed", "cause": "", "transient": True, "log": "", **figures}

    monkeypatch.setattr(launch, "first_failure", fails)
    [result] = play("time.sleep(60)").results
    assert (result.outcome, result.probe.micro_batch_size) == (Outcome.CRASHED, 7)


def test_a_probe_that_is_noticed_late_has_begun_before(play, monkeypatch):
    def stalls(directory, hardware):
        if (directory / "request.json").exists():
            time.sleep(3.0)

    monkeypatch.setattr(launch, "first_failure", stalls)
    readies = []
    began = time.monotonic()
    end = play(
        'tell(kind="start", probe=PROBE); tell(kind="done")',
        on_ready=lambda: readies.append(time.monotonic()),
    )
    [ready] = readies
    assert end.start_wait_seconds < ready - began + 2.5
    assert end.start_seconds > 0


def test_a_failure_after_an_answered_probe_is_not_laid_to_it(play):
    lines = 'tell(kind="start", probe=PROBE); tell(kind="result", result=RESULT)'
    end = play(lines + '; time.sleep(0.5); fail(0, "crashed", "later", 1.0); time.sleep(60)')
    assert [r.outcome for r in end.results] == [Outcome.OK, Outcome.CRASHED]
    assert end.results[1].probe != a_probe()


@pytest.mark.parametrize("started", [True, False])
def test_silence_beyond_the_deadline_is_a_hang_and_ends_the_child(
    play, tmp_path, monkeypatch, living_in_group, started
):
    def be_brief():
        if not started:
            monkeypatch.setattr(launch, "START_SECONDS", 1.0)

    end = play(
        f"""
        os.fork()
        if {started}:
            tell(kind="start", probe=PROBE)
        time.sleep(600)
        """,
        a_probe(deadline_seconds=1.0),
        on_ready=be_brief,
    )
    [result] = end.results
    assert result.outcome is Outcome.HUNG
    assert "no answer within" in result.cause
    group = int((tmp_path / "group").read_text())
    assert group != os.getpgid(0)
    assert living_in_group(group) == []


COMPILES = 'File "/site/torch/_dynamo/convert_frame.py", line 1 in __call__'
RUNS = 'File "/site/torch/_dynamo/eval_frame.py", line 1 in compile_wrapper'


@pytest.mark.parametrize(
    ("compiled", "warm", "stacks", "outcome"),
    [
        (True, False, COMPILES, Outcome.COMPILE_FAILED),
        # In a collective, say, or in loading data.
        (True, False, RUNS, Outcome.HUNG),
        (True, True, COMPILES, Outcome.HUNG),
        (False, False, RUNS, Outcome.HUNG),
    ],
)
def test_silence_is_laid_to_the_compilation_where_a_rank_was_compiling(
    play, compiled, warm, stacks, outcome
):
    end = play(
        f"""
        tell(kind="start", probe=PROBE)
        earlier = "Timeout (0:00:01)!\\n" + {COMPILES!r} + "\\n"
        (folder / "rank0.log").write_text(earlier + "Timeout (0:00:01)!\\n" + {RUNS!r})
        (folder / "rank1.log").write_text(earlier + "Timeout (0:00:01)!\\n" + {stacks!r})
        if {warm}:
            tell(kind="warm")
        time.sleep(600)
        """,
        a_probe(deadline_seconds=1.0, compile=compiled),
    )
    assert [result.outcome for result in end.results] == [outcome]


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """Where a rank locks what DeepSpeed builds."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    return lock


def test_no_lock_of_a_build_outlives_the_rank_that_is_killed(play, lock):
    end = play(
        f"""
        held = os.open({str(lock)!r}, os.O_CREAT | os.O_EXCL)
        tell(kind="start", probe=PROBE)
        time.sleep(600)
        """,
        a_probe(deadline_seconds=1.0),
    )
    assert [result.outcome for result in end.results] == [Outcome.HUNG]
    assert not lock.exists()


def test_who_waits_for_a_build_of_another_says_so(play, lock, tmp_path):
    lock.touch()
    # Of an earlier run, or of another machine with this home.
    os.utime(lock, (0, 0))
    end = play(
        """
        tell(kind="start", probe=PROBE)
        waits = 'File "/site/torch/utils/file_baton.py", line 53 in wait'
        (folder / "rank0.log").write_text("Timeout (0:00:01)!\\n" + "elsewhere")
        (folder / "rank1.log").write_text("Timeout (0:00:01)!\\n" + waits)
        time.sleep(600)
        """,
        a_probe(deadline_seconds=1.0),
    )
    [result] = end.results
    assert result.cause == (
        "no answer within 1 s; it waits for another process to build an extension: where none "
        f"does, remove {lock}"
    )
    assert result.log == str(tmp_path / "rank1.log")
    assert lock.exists()


def test_a_killed_rank_that_nobody_misses_is_named(play, tmp_path):
    # The launcher would kill the healthy one in the end.
    end = play(
        """
        import subprocess
        dead = subprocess.Popen(["true"])
        dead.wait()
        name(0, os.getpid())
        name(1, dead.pid)
        time.sleep(60)
        """
    )
    assert [result.cause for result in end.results] == [
        "rank1 was killed, perhaps by the host for want of memory"
    ]
    assert end.results[0].log == str(tmp_path / "rank1.log")


def test_a_rank_that_is_over_was_not_killed(play):
    end = play(
        """
        import subprocess
        dead = subprocess.Popen(["true"])
        dead.wait()
        (folder / "rank1.over").touch()
        (folder / "rank1.pid").write_text(str(dead.pid))
        time.sleep(1.0)
        tell(kind="done")
        """
    )
    assert end.finished
    assert end.results == []


def test_a_session_whose_folder_is_removed_is_over(play, tmp_path):
    end = play(
        """
        import shutil
        tell(kind="start", probe=PROBE)
        time.sleep(0.5)
        shutil.rmtree(folder)
        time.sleep(60)
        """
    )
    [result] = end.results
    assert result.outcome is Outcome.CRASHED
    assert result.cause == f"the session's folder {tmp_path} is gone"


@pytest.mark.parametrize("while_listed", [False, True])
def test_a_folder_that_goes_while_it_is_looked_at_is_gone(
    play, tmp_path, monkeypatch, while_listed
):
    def goes(*where):
        shutil.rmtree(tmp_path, ignore_errors=True)
        raise FileNotFoundError(tmp_path)

    if while_listed:
        monkeypatch.setattr(Path, "glob", goes)
    else:
        monkeypatch.setattr(launch, "first_failure", goes)
    [result] = play('tell(kind="start", probe=PROBE); time.sleep(60)').results
    assert result.cause == f"the session's folder {tmp_path} is gone"


def test_failures_that_go_before_they_are_read_are_none(tmp_path, monkeypatch, tiny_config):
    folder = tmp_path / "session"
    folder.mkdir()
    (folder / "rank0.failure.json").write_text("{}")
    monkeypatch.setattr(post_mortem.time, "sleep", lambda seconds: shutil.rmtree(folder))
    assert post_mortem.first_failure(folder, tiny_config().hardware) is None


def test_each_probe_has_its_own_deadline(play):
    # Two probes and the pause between them take longer than either may.
    twice = 'tell(kind="start", probe=PROBE); time.sleep(1.5); tell(kind="result", result=RESULT)'
    lines = f'{twice}; time.sleep(1.5); {twice}; tell(kind="done")'
    end = play(lines, a_probe(deadline_seconds=4.0))
    assert end.finished
    assert len(end.results) == 2


def test_a_session_leaves_only_its_own_folder(play, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    play('tell(kind="done")')
    assert list(Path(elsewhere).iterdir()) == []
