import subprocess
import sys
import time

import psutil
import pytest
from torch.utils.file_baton import FileBaton

from academic_pretraining.benchmarking.build_locks import build_locks, remove_dead_build_locks

HOLDER = """
import sys
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("has it", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def lock(tmp_path):
    folder = tmp_path / "torch_extensions" / "py311_cpu" / "deepspeed_shm_comm"
    folder.mkdir(parents=True)
    return folder / "lock"


@pytest.fixture
def environment(tmp_path):
    return {"XDG_CACHE_HOME": str(tmp_path)}


def test_locks_are_found_where_torch_makes_them(lock, environment, tmp_path, monkeypatch):
    assert build_locks(environment) == []
    lock.touch()
    assert build_locks(environment) == [lock]
    # torch uses a given folder without one for Python and CUDA in between.
    assert build_locks({"TORCH_EXTENSIONS_DIR": str(lock.parent.parent)}) == [lock]
    (tmp_path / ".cache").mkdir()
    (tmp_path / "torch_extensions").rename(tmp_path / ".cache" / "torch_extensions")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [path.name for path in build_locks({})] == ["lock"]


def test_the_lock_of_a_killed_process_is_removed_and_one_that_is_held_stays(lock, environment):
    began_at = time.time() - 1
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        remove_dead_build_locks(environment, since=began_at)
        assert lock.exists()
    finally:
        process.kill()
        process.wait()
    # torch would wait for ever.
    assert not FileBaton(str(lock)).try_acquire()
    remove_dead_build_locks(environment, since=began_at)
    assert FileBaton(str(lock)).try_acquire()


def test_a_lock_from_before_stays(lock, environment):
    lock.touch()
    remove_dead_build_locks(environment, since=time.time() + 60)
    assert lock.exists()


def test_where_nobody_can_be_seen_a_lock_stays(lock, environment, tmp_path, monkeypatch):
    lock.touch()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "none"))
    remove_dead_build_locks(environment, since=0)
    assert lock.exists()
    monkeypatch.undo()
    remove_dead_build_locks(environment, since=0)
    assert not lock.exists()
