import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from academic_pretraining.benchmarking.checkpoints import MARK, STATE, choose, mark
from academic_pretraining.benchmarking.marks import MarksCheckpoints

SAVES: Any = SimpleNamespace(should_save=True)
SAVES_NOT: Any = SimpleNamespace(should_save=False)


@pytest.fixture
def write(tmp_path):
    """Write what the Trainer of one rank does of a checkpoint."""

    def of_step(step: int) -> Path:
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        (path / "optimizer.pt").write_bytes(b"moments")
        (path / STATE).write_text(json.dumps({"global_step": step, "epoch": 0.5}))
        return path

    return of_step


def arguments(folder: Path, *, should_save: bool = True) -> Any:
    return SimpleNamespace(output_dir=str(folder), should_save=should_save)


def at(step: int) -> Any:
    return SimpleNamespace(global_step=step)


def test_what_was_saved_is_whole(write, tmp_path):
    path = write(14)
    MarksCheckpoints().on_save(arguments(tmp_path), at(14), SAVES)
    assert (path / MARK).exists()
    chosen = choose(tmp_path, resume=True)
    assert chosen is not None
    assert chosen.step == 14


def test_one_rank_marks_when_all_have_written(write, tmp_path, monkeypatch):
    path = write(14)
    seen = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "barrier", lambda: seen.append((path / MARK).exists()))
    MarksCheckpoints().on_save(arguments(tmp_path, should_save=False), at(14), SAVES)
    assert not (path / MARK).exists()
    MarksCheckpoints().on_save(arguments(tmp_path), at(14), SAVES)
    # Nobody waits alone, and the mark comes after.
    assert seen == [False, False]
    assert (path / MARK).exists()


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
def test_what_is_about_to_be_written_over_is_not_whole(write, tmp_path, event):
    for step in (12, 14):
        mark(write(step))
    unmark = getattr(MarksCheckpoints(), event)
    unmark(arguments(tmp_path), at(14), SAVES_NOT)
    unmark(arguments(tmp_path, should_save=False), at(14), SAVES)
    assert (tmp_path / "checkpoint-14" / MARK).exists()
    unmark(arguments(tmp_path), at(14), SAVES)
    chosen = choose(tmp_path, resume=True)
    assert chosen is not None
    assert chosen.step == 12
