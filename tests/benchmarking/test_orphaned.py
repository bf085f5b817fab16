import os
import threading

from academic_pretraining.benchmarking import orphaned
from academic_pretraining.benchmarking.orphaned import call_when_orphaned


def test_who_has_another_parent_is_orphaned():
    called = threading.Event()
    call_when_orphaned(os.getpid(), called.set)
    assert called.wait(10)


def test_who_has_that_parent_is_not(monkeypatch):
    looked = threading.Semaphore(0)
    monkeypatch.setattr(orphaned, "_POLL_SECONDS", 0.01)
    parent = os.getppid()

    def getppid() -> int:
        looked.release()
        return parent

    monkeypatch.setattr(os, "getppid", getppid)
    called = threading.Event()
    call_when_orphaned(parent, called.set)
    for _ in range(3):
        assert looked.acquire(timeout=10)
    assert not called.is_set()
    parent = 1
    assert called.wait(10)
