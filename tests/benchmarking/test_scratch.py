import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys

import pytest

from academic_pretraining.benchmarking.scratch import (
    any_begun,
    keep,
    remove_abandoned,
    session_folder,
)

OTHER = """
import sys
from pathlib import Path
from academic_pretraining.benchmarking.scratch import session_folder
with session_folder(Path(sys.argv[1])) as folder:
    (folder / "trainer").mkdir()
    (folder / "trainer" / "weights").write_text("half of them")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Have another process hold a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_folder_is_private_and_goes_in_the_end(tmp_path):
    scratch = tmp_path / "not" / "there"
    with session_folder(scratch) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "file").write_text("")
        (folder / "folder").mkdir()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_folder_goes_whatever_happens(tmp_path, error):
    with pytest.raises(error), session_folder(tmp_path):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with session_folder(tmp_path / "scratch") as folder:
        (folder / "link").symlink_to(tmp_path / "mine")
    assert (tmp_path / "mine" / "file").read_text() == "mine"


def test_logs_that_are_kept_stay_without_what_was_trained(tmp_path):
    with session_folder(tmp_path) as folder:
        (folder / "rank0.log").write_text("what happened")
        (folder / "trainer").mkdir()
        (folder / "tmp" / "of torchrunx").mkdir(parents=True)
        keep(folder)
    assert [path.name for path in folder.iterdir()] == ["rank0.log"]
    assert (folder / "rank0.log").read_text() == "what happened"
    assert remove_abandoned(tmp_path) == 0
    assert (folder / "rank0.log").exists()


def test_what_a_killed_process_left_goes(tmp_path, other):
    assert remove_abandoned(tmp_path) == 0
    assert len(list(tmp_path.glob("session-*/trainer/weights"))) == 1
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert len(list(tmp_path.iterdir())) == 2
    assert remove_abandoned(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lock_without_its_folder_goes_too(tmp_path):
    # Killed between the two, at the beginning or at the end.
    (tmp_path / "session-new.lock").write_text("")
    assert remove_abandoned(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_taken_for_an_abandoned_one_is_made_anew(tmp_path, monkeypatch):
    locks = []

    def flock(descriptor, how):
        if not locks:
            next(tmp_path.glob("*.lock")).unlink()
        locks.append(descriptor)

    monkeypatch.setattr(fcntl, "flock", flock)
    with session_folder(tmp_path) as folder:
        assert folder.with_suffix(".lock").exists()
    assert len(locks) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_left_as_it_was(tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Function not implemented"), session_folder(tmp_path):
        raise AssertionError("a folder without a lock")
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "session-mine").mkdir()
    (tmp_path / "else").mkdir()
    assert remove_abandoned(tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 2
    assert remove_abandoned(tmp_path / "nowhere") == 0


def test_a_killed_process_is_seen_to_have_begun(other, tmp_path):
    assert any_begun(tmp_path)
    other.kill()
    other.wait()
    assert any_begun(tmp_path)
    remove_abandoned(tmp_path)
    assert not any_begun(tmp_path)
    assert not any_begun(tmp_path / "nowhere")
