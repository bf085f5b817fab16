import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from academic_pretraining.benchmarking import tended as tended_module
from academic_pretraining.benchmarking.tended import tended
from academic_pretraining.errors import HardwareMismatchError, TrainingError

SOURCE = Path("args.json")
# The shell is gone before its sleeper, as torchrunx's is before its agent.
ORPHAN = 'trap "" TERM; sleep 600 & echo $!; sleep 600'


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    monkeypatch.setattr(tended_module, "_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(tended_module, "_END_SECONDS", 1.5)


def sleepers(found: list[psutil.Process]) -> None:
    shell = subprocess.Popen(["sh", "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    found += [psutil.Process(shell.pid), psutil.Process(int(shell.stdout.readline()))]


def test_what_came_of_it_is_given_and_its_folder_goes(tmp_path):
    def start(variables):
        folder = Path(variables["TMPDIR"])
        (folder / "left").mkdir()
        return folder

    assert not tended(start, source=SOURCE).exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("one\ntwo"), "RuntimeError: one"),
        (AssertionError(), "AssertionError: no reason given"),
        (OSError(28, "No space left"), "OSError: [Errno 28] No space left"),
        (
            RuntimeError(str({"message": "ValueError: it's\nso", "extraInfo": {"a": "b\nc"}})),
            "RuntimeError: ValueError: it's",
        ),
        (RuntimeError("{'message': "), "RuntimeError: {'message':"),
    ],
)
def test_whatever_is_raised_becomes_a_line(error, reason):
    def start(variables):
        raise error

    with pytest.raises(TrainingError) as caught:
        tended(start, source=SOURCE)
    assert str(caught.value) == (
        f"the training of args.json failed: {reason}; what workers said stands above"
    )


def test_an_error_with_a_line_of_its_own_stays():
    def start(variables):
        raise HardwareMismatchError("another GPU")

    with pytest.raises(HardwareMismatchError, match=r"^another GPU$"):
        tended(start, source=SOURCE)


def test_processes_are_ended_whatever_came_of_it():
    found: list[psutil.Process] = []
    tended(lambda variables: sleepers(found), source=SOURCE)
    assert len(found) == 2
    assert not any(process.is_running() for process in found)


@pytest.mark.skipif(sys.platform != "linux", reason="nobody can adopt orphans there")
def test_an_orphan_of_earlier_is_ended_too():
    found: list[psutil.Process] = []

    def start(variables):
        orphan = ["sh", "-c", "sleep 600 > /dev/null 2>&1 & echo $!"]
        said = subprocess.run(orphan, capture_output=True, text=True, check=True).stdout
        found.append(psutil.Process(int(said)))

    tended(start, source=SOURCE)
    assert not found[0].is_running()


def test_those_of_before_are_left_alone():
    with subprocess.Popen(["sleep", "600"]) as mine:
        tended(lambda variables: None, source=SOURCE)
        assert mine.poll() is None
        mine.kill()


def to_the_process(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def to_this_thread(number: signal.Signals) -> None:
    """Play the kernel where the main thread is not the one that it picks."""
    signal.pthread_kill(threading.get_ident(), number)


@pytest.mark.parametrize("send", [to_the_process, to_this_thread])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_what_does_not_listen(number, send):
    found: list[psutil.Process] = []
    before = signal.getsignal(signal.SIGTERM)
    over = threading.Event()

    def start(variables):
        sleepers(found)
        send(number)
        over.wait(60)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tended(start, source=SOURCE)
    assert time.monotonic() - began < 30
    over.set()
    assert not any(process.is_running() for process in found)
    assert signal.getsignal(signal.SIGTERM) is before
