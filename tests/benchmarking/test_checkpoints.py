import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from academic_pretraining.benchmarking.checkpoints import (
    MARK,
    STATE,
    Checkpoint,
    choose,
    made,
    mark,
    refuse_lost_states,
    refuse_lost_weights,
)
from academic_pretraining.errors import InvalidConfigError, InvalidFileError

AT_14 = Checkpoint(path=Path("checkpoint-14"), step=14, epoch=2.5)


@pytest.mark.parametrize("marked", [True, False])
def test_the_newest_by_number_is_chosen(save, tmp_path, capsys, marked):
    for step in (100, 8, 20):
        save(step, marked=marked)
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / "checkpoint-200").write_text("no folder")
    assert choose(tmp_path, resume=True) == Checkpoint(
        path=tmp_path / "checkpoint-100", step=100, epoch=10.0
    )
    assert capsys.readouterr().err == ""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


BREAKS = {
    "empty": (lambda path: [p.unlink() for p in path.rglob("*.*")], f"it lacks {STATE}"),
    "no state": (lambda path: (path / STATE).unlink(), f"it lacks {STATE}"),
    "half a state": (lambda path: cut(path / STATE), f"its {STATE} is damaged"),
    "another state": (lambda path: (path / STATE).write_text("[]"), f"its {STATE} is damaged"),
    "optimizer": (lambda path: cut(path / "optimizer.pt"), "its optimizer.pt is damaged"),
    "shard": (
        lambda path: cut(path / "global_step2" / "states.pt"),
        "its global_step2/states.pt is damaged",
    ),
}


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("how", BREAKS)
def test_what_is_not_whole_is_left_out_and_said(save, tmp_path, capsys, how, marked):
    whole = save(12, marked=marked)
    damage, why = BREAKS[how]
    damage(save(14, marked=marked))
    chosen = choose(tmp_path, resume=True)
    assert chosen is not None
    assert chosen.path == whole
    assert (
        capsys.readouterr().err == f"going on from checkpoint-12, without checkpoint-14 ({why})\n"
    )


def test_a_file_that_another_rank_had_written_is_missed(save, tmp_path, capsys):
    save(12)
    (save(14) / "rng_state_0.pth").unlink()
    chosen = choose(tmp_path, resume=True)
    assert chosen is not None
    assert chosen.step == 12
    assert "without checkpoint-14 (it lacks rng_state_0.pth)" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[1]", '{"optimizer.pt": "x"}'])
def test_a_damaged_mark_is_none(save, tmp_path, content):
    save(12)
    (save(14) / MARK).write_text(content)
    chosen = choose(tmp_path, resume=True)
    assert chosen is not None
    assert chosen.step == 12


def test_a_file_may_have_grown_since_it_was_seen(save, tmp_path):
    path = save(14)
    (path / "optimizer.pt").write_bytes((path / "optimizer.pt").read_bytes() + b"more")
    assert choose(tmp_path, resume=True) is not None


def test_without_a_whole_one_there_is_nothing_to_go_on_from(save, tmp_path):
    for step in (12, 14):
        (save(step) / STATE).unlink()
    with pytest.raises(InvalidConfigError) as caught:
        choose(tmp_path, resume=True)
    assert str(caught.value) == (
        f"--resume was given, but {tmp_path} holds no whole checkpoint, only checkpoint-14 (it "
        f"lacks {STATE}), checkpoint-12 (it lacks {STATE}): leave it out to begin"
    )


def test_a_training_begins_where_the_first_checkpoint_was_cut_off(save, tmp_path, capsys):
    (save(14) / STATE).unlink()
    assert choose(tmp_path, resume=False) is None
    assert capsys.readouterr().err == (
        f"beginning anew, without checkpoint-14 (it lacks {STATE})\n"
    )


def test_two_ranks_may_mark_one_folder(save, tmp_path):
    checkpoint = save(3)
    (checkpoint / "complete.json.other.1").write_text("half of")
    mark(checkpoint)
    (checkpoint / "complete.json.other.1").unlink()
    chosen = choose(tmp_path, resume=True)
    assert chosen is not None
    assert chosen.path == checkpoint


def test_a_training_does_not_begin_where_another_is(save, tmp_path):
    assert choose(tmp_path, resume=False) is None
    for step in (8, 14):
        save(step)
    with pytest.raises(InvalidConfigError) as caught:
        choose(tmp_path, resume=False)
    assert str(caught.value) == (
        f"{tmp_path} holds checkpoint-14: give --resume to go on, or name another folder"
    )


@pytest.mark.parametrize(
    ("fields", "stop", "over"),
    [
        ({"max_steps": 14}, None, "the training is over (14 of 14 steps)"),
        ({"max_steps": 13}, None, "the training is over (14 of 13 steps)"),
        ({"max_steps": 15}, None, ""),
        ({"max_steps": 15}, 15, ""),
        ({"max_steps": 15}, 14, "the training is at step 14: --stop-after-steps is 14"),
        ({"max_steps": 15}, 3, "the training is at step 14: --stop-after-steps is 3"),
        (
            {"max_steps": -1, "num_train_epochs": 2.5},
            None,
            "the training is over (2.5 of 2.5 epochs)",
        ),
        ({"num_train_epochs": 2.6}, None, ""),
        ({}, None, ""),
    ],
    ids=str,
)
def test_the_end_is_known(fields, stop, over):
    assert AT_14.why_over(fields, stop) == over


def test_a_folder_that_stays_empty_goes_again(tmp_path):
    with made(tmp_path / "new" / "run"), made(tmp_path / "new" / "run" / "logs"):
        assert (tmp_path / "new" / "run" / "logs").is_dir()
    assert list(tmp_path.iterdir()) == []
    with made(tmp_path / "run"):
        (tmp_path / "run" / "log").write_text("here")
    with made(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / "log").exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidFileError) as caught, made(tmp_path / "file" / "run"):
        raise AssertionError
    assert str(caught.value) == (
        f"{tmp_path}/file/run cannot be made ([Errno 20] Not a directory: "
        f"'{tmp_path}/file/run'): name another folder"
    )


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(2, 2)
        self.second = torch.nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("counter", torch.zeros(1))


@pytest.mark.parametrize("shards", [False, True])
def test_weights_that_a_checkpoint_lacks_are_named(tmp_path, shards):
    model: Any = Tied()
    tensors = {name: torch.zeros(2) for name in model.state_dict() if name != "second.weight"}

    def write(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, tmp_path / f"model{'-1-of-1' * shards}.safetensors")
        if shards:
            index = {"weight_map": dict.fromkeys(tensors, "model-1-of-1.safetensors")}
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    write(tensors)
    refuse_lost_weights(tmp_path, model)
    del tensors["second.bias"], tensors["counter"]
    write(tensors)
    with pytest.raises(InvalidFileError) as caught:
        refuse_lost_weights(tmp_path, model)
    assert str(caught.value) == (
        f"{tmp_path} lacks 2 of the model's 5 weights, as counter, for it is another model's or "
        "was saved under the hub's names: begin again in another folder"
    )


@pytest.mark.parametrize("optimizer", ["optimizer.pt", "optimizer_0"])
def test_states_that_are_there_are_let_through(tmp_path, optimizer):
    for name in (optimizer, "scheduler.pt"):
        (tmp_path / name).touch()
    refuse_lost_states(tmp_path)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ((), "the optimizer, for it was saved with save_only_model or by another way of sharding"),
        (("scheduler.pt", "global_step20"), "the optimizer, for it was saved by DeepSpeed"),
        (("optimizer.pt",), "the learning-rate schedule, for it was saved with save_only_model"),
    ],
)
def test_states_that_would_begin_anew_are_refused(tmp_path, there, said):
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(InvalidFileError, match=f"^{tmp_path} lacks the state of {said}"):
        refuse_lost_states(tmp_path)
