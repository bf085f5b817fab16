from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from transformers import TrainerState

from academic_pretraining.benchmarking.checkpoints import MARK, choose
from academic_pretraining.benchmarking.marks import MarksCheckpoints

SAVES: Any = SimpleNamespace(should_save=True)
SAVES_NOT: Any = SimpleNamespace(should_save=False)


def arguments(folder: Path, *, should_save: bool = True) -> Any:
    return SimpleNamespace(output_dir=str(folder), should_save=should_save)


def at(step: int) -> Any:
    return SimpleNamespace(global_step=step)


def test_what_was_saved_is_whole(save, tmp_path):
    path = save(14, marked=False)
    MarksCheckpoints().on_save(arguments(tmp_path), at(14), SAVES)
    assert (path / MARK).exists()
    chosen = choose(tmp_path, resume=True)
    assert chosen is not None
    assert chosen.step == 14


def test_one_rank_marks_when_all_have_written(save, tmp_path, monkeypatch):
    path = save(14, marked=False)
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
def test_what_is_about_to_be_written_over_is_not_whole(save, tmp_path, event):
    for step in (12, 14):
        save(step)
    unmark = getattr(MarksCheckpoints(), event)
    unmark(arguments(tmp_path), at(14), SAVES_NOT)
    unmark(arguments(tmp_path, should_save=False), at(14), SAVES)
    assert (tmp_path / "checkpoint-14" / MARK).exists()
    unmark(arguments(tmp_path), at(14), SAVES)
    chosen = choose(tmp_path, resume=True)
    assert chosen is not None
    assert chosen.step == 12


def test_a_resumed_training_saves_as_often_as_it_is_told_now():
    # As the Trainer has read it off a checkpoint.
    state = TrainerState(max_steps=100, save_steps=1000, logging_steps=7)
    asked: Any = SimpleNamespace(save_steps=0.25, logging_steps=7, eval_steps=None)
    MarksCheckpoints().on_train_begin(asked, state, SAVES_NOT)
    assert (state.save_steps, state.logging_steps) == (25, 7)
