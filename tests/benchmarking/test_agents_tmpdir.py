import os
import stat
import tempfile

import pytest

from academic_pretraining.benchmarking.agents_tmpdir import agents_tmpdir, restore_tmpdir


@pytest.fixture(autouse=True)
def usual(tmp_path, monkeypatch):
    usual = tmp_path / "usual"
    usual.mkdir()
    monkeypatch.setenv("TMPDIR", str(usual))
    monkeypatch.setattr(tempfile, "tempdir", None)
    # So that it is taken back.
    monkeypatch.delenv("ACADEMIC_PRETRAINING_RANKS_TMPDIR", raising=False)
    return usual


def test_ranks_have_the_usual_folder_again(tmp_path, usual, monkeypatch):
    variables = agents_tmpdir(tmp_path / "own")
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tempfile.gettempdir() == str(tmp_path / "own")
    restore_tmpdir()
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(usual)
    assert not set(variables) - {"TMPDIR"} & set(os.environ)


def test_where_there_was_none_is_none_again(tmp_path, monkeypatch):
    monkeypatch.delenv("TMPDIR")
    for name, value in agents_tmpdir(tmp_path / "own").items():
        monkeypatch.setenv(name, value)
    restore_tmpdir()
    assert "TMPDIR" not in os.environ


def test_a_folder_that_another_node_lacks_is_not_taken(tmp_path, usual, monkeypatch):
    for name, value in agents_tmpdir(tmp_path / "own").items():
        monkeypatch.setenv(name, value)
    usual.rmdir()
    restore_tmpdir()
    assert "TMPDIR" not in os.environ


def test_a_rank_without_a_folder_to_restore_keeps_its_own(usual):
    restore_tmpdir()
    assert tempfile.gettempdir() == str(usual)
