"""fp16 overflows of a real gradient scaler, as those who time and judge steps see them."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.profiler import ProfilerActivity
from transformers import TrainerControl, TrainerState

from academic_pretraining.benchmarking.communication import CommunicationTimer
from academic_pretraining.benchmarking.learning import moved
from academic_pretraining.benchmarking.timing import StepTimer
from academic_pretraining.benchmarking.updates import updates, without_update


class Stepping:
    """Steps an optimizer under a gradient scaler, as accelerate does, with overflows at will."""

    def __init__(self, *, fused: bool) -> None:
        self.model = torch.nn.Linear(2, 1)
        self.scaler = torch.amp.GradScaler("cpu")
        self.optimizer = AcceleratedOptimizer(
            torch.optim.AdamW(self.model.parameters(), fused=fused), scaler=self.scaler
        )

    def step(self, *, overflows: bool) -> None:
        loss = self.model(torch.ones(1, 2)).sum() * (float("inf") if overflows else 1.0)
        self.scaler.scale(loss).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.fixture(params=[True, False], ids=["fused", "not fused"])
def stepping(request, own_trainer_state) -> Stepping:
    Accelerator(cpu=True)
    return Stepping(fused=request.param)


def counts_of(stepping: Stepping, overflows: list[bool]) -> Iterator[Any]:
    for overflow in overflows:
        stepping.step(overflows=overflow)
        yield updates(stepping.optimizer)


def test_only_steps_without_an_overflow_update_the_weights(stepping):
    found, before = [], updates(stepping.optimizer)
    for count in counts_of(stepping, [True, False, False, True, False]):
        found.append(without_update(before, count))
        before = count
    # One that is not fused has no count before it was called; accelerate tells of that one.
    fused = stepping.optimizer.optimizer.defaults["fused"]
    assert found == [fused, False, False, True, False]


def test_accelerate_sees_no_overflow_of_a_fused_optimizer(own_trainer_state):
    Accelerator(cpu=True)
    stepping = Stepping(fused=True)
    stepping.step(overflows=True)
    # When this fails, updates.py can go.
    assert not stepping.optimizer.step_was_skipped


def test_without_a_scaler_nothing_is_counted():
    optimizer = torch.optim.AdamW(torch.nn.Linear(2, 1).parameters())
    assert updates(optimizer) is None
    assert updates(None) is None
    assert not without_update(None, None)


def test_a_timer_notes_an_overflow_where_it_happens(stepping):
    timer, state = StepTimer(cuda=False, warm_up_steps=1), TrainerState()
    now: Any = (None, state, TrainerControl())
    timer.on_train_begin(*now)
    for overflows in [True, False, True, False, True]:
        timer.on_step_begin(*now)
        stepping.step(overflows=overflows)
        timer.on_optimizer_step(*now, optimizer=stepping.optimizer)
        state.global_step += 1
        timer.on_step_end(*now)
    assert [sample.skipped for sample in timer.samples()] == [False, True, False, True]


def test_what_an_overflow_exchanges_is_left_out(stepping):
    timer = CommunicationTimer(0, activities=(ProfilerActivity.CPU,))
    now: Any = (None, TrainerState(), TrainerControl())
    counts = []
    for overflows in [True, False, True, False]:
        timer.on_step_begin(*now)
        stepping.step(overflows=overflows)
        timer.on_optimizer_step(*now, optimizer=stepping.optimizer)
        timer.on_step_end(*now)
        counts.append(len(timer.samples))
    assert counts == [0, 1, 1, 2]


def test_overflows_alone_say_nothing_about_learning(stepping):
    trainer: Any = SimpleNamespace(
        model_wrapped=stepping.model, model=stepping.model, optimizer=stepping.optimizer
    )
    stepping.step(overflows=True)
    assert moved(trainer) == {}
    stepping.step(overflows=False)
    assert {name: moves for name, (_, moves) in moved(trainer).items()} == {
        "weight": True,
        "bias": True,
    }
