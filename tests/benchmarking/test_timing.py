import itertools
import time

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from academic_pretraining.benchmarking import timing
from academic_pretraining.benchmarking.timing import EnoughTimed, StepTimer

# The system's sleep may not wake early, but two clocks may differ a little.
NAP = 0.02
ALMOST = 0.95


@pytest.fixture(autouse=True)
def own_state(own_trainer_state):
    """Train in this process."""


class Numbers(Dataset):
    def __init__(self, count: int, nap: float = 0.0) -> None:
        self.count, self.nap = count, nap

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.nap)
        return {"x": torch.ones(3)}


class Line(nn.Module):
    def __init__(self, nap: float = 0.0) -> None:
        super().__init__()
        self.layer, self.nap = nn.Linear(3, 1), nap

    def forward(self, x):
        time.sleep(self.nap)
        return {"loss": self.layer(x).mean()}


class NapAfterStep(TrainerCallback):
    def on_log(self, args, state, control, **kwargs):
        time.sleep(NAP)


def train(folder, timer: StepTimer, micro_batches: int, epochs: int = 1, **how) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_train_epochs=epochs,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=how.pop("logging_steps", 1000),
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=how.pop("model", None) or Line(),
        args=arguments,
        train_dataset=Numbers(2 * micro_batches, how.pop("data_nap", 0.0)),
        data_collator=how.pop("data_collator", default_data_collator),
        callbacks=[timer, *how.pop("callbacks", [])],
        **how,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("micro_batches", "epochs", "warm_up_steps", "accumulations"),
    [
        (20, 1, 2, [4, 4, 4]),
        (18, 1, 2, [4, 4, 2]),
        (18, 3, 2, [4, 4, 2] + [4, 4, 4, 2] * 2),
        (18, 1, 0, [4, 4, 4, 2]),
        (13, 2, 1, [4, 4, 1, 4, 4, 1]),
        (8, 1, 2, []),
        # The first step of the second epoch is number 6.
        (18, 2, 4, [2, 4, 4, 4, 2]),
        (18, 2, 6, [4, 4, 4, 2]),
        (18, 2, 9, [2]),
        (18, 2, 10, []),
    ],
)
def test_steps_are_those_of_the_trainer_with_the_epochs_remainder(
    tmp_path, micro_batches, epochs, warm_up_steps, accumulations
):
    # The first step of an epoch and the warm-up are left out.
    timer = StepTimer(cuda=False, warm_up_steps=warm_up_steps)
    trainer = train(tmp_path, timer, micro_batches, epochs)
    assert [s.accumulation for s in timer.samples()] == accumulations
    assert trainer.state.global_step == epochs * -(-micro_batches // 4)
    assert not any(s.skipped for s in timer.samples())


def test_steps_have_parts_that_are_no_longer_than_the_whole(tmp_path):
    timer = StepTimer(cuda=False)
    train(tmp_path, timer, 20)
    assert timer.samples()
    for sample in timer.samples():
        assert min(sample.data_seconds, sample.optimizer_seconds) > 0
        assert sample.data_seconds + sample.optimizer_seconds < sample.seconds


def test_reading_the_data_is_inside(tmp_path):
    timer = StepTimer(cuda=False)
    train(tmp_path, timer, 20, data_nap=NAP)
    # Accelerate reads one micro-batch ahead: an epoch's last step has one less to read.
    assert [sample.fetched for sample in timer.samples()] == [4, 4, 3]
    for sample in timer.samples():
        assert sample.data_seconds >= ALMOST * NAP * 2 * sample.fetched
        assert sample.seconds >= ALMOST * NAP * 2 * sample.fetched


def test_a_step_fetches_as_many_micro_batches_as_are_collated_in_it(tmp_path):
    counts = [0]

    def collate(examples):
        counts[-1] += 1
        return default_data_collator(examples)

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            counts.append(0)

    timer = StepTimer(cuda=False, warm_up_steps=0)
    train(tmp_path, timer, 18, 2, data_collator=collate, callbacks=[Count()])
    # The first of each epoch is not timed, and fetches one more.
    assert counts == [5, 4, 4, 4, 1, 5, 4, 4, 4, 1, 0]
    assert [s.fetched for s in timer.samples()] == counts[1:5] + counts[6:10]


def test_a_training_that_stops_within_an_epoch_has_fetched_ahead(tmp_path):
    timer = StepTimer(cuda=False, warm_up_steps=0)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    train(tmp_path, timer, 18, callbacks=[Stop()])
    assert [s.fetched for s in timer.samples()] == [4, 4]


def test_collating_is_inside(tmp_path):
    def collate(examples):
        time.sleep(NAP)
        return default_data_collator(examples)

    timer = StepTimer(cuda=False)
    train(tmp_path, timer, 20, data_collator=collate)
    for sample, reads in zip(timer.samples(), [4, 4, 3], strict=True):
        assert sample.data_seconds >= ALMOST * NAP * reads


def test_the_model_is_inside_and_is_neither_data_nor_optimizer(tmp_path):
    timer = StepTimer(cuda=False)
    train(tmp_path, timer, 18, model=Line(nap=NAP))
    for sample in timer.samples():
        rest = sample.seconds - sample.data_seconds - sample.optimizer_seconds
        assert rest >= ALMOST * NAP * sample.accumulation


def test_the_optimizer_is_inside(tmp_path):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: time.sleep(NAP))
    timer = StepTimer(cuda=False)
    train(tmp_path, timer, 18, model=model, optimizers=(optimizer, None))
    assert len(timer.samples()) == 3
    for sample in timer.samples():
        assert sample.optimizer_seconds >= ALMOST * NAP
        assert sample.seconds >= ALMOST * NAP


def test_what_the_trainer_does_between_steps_is_inside_the_next_one(tmp_path):
    timer = StepTimer(cuda=False)
    train(tmp_path, timer, 20, callbacks=[NapAfterStep()], logging_steps=1)
    assert len(timer.samples()) == 3
    assert all(sample.data_seconds >= ALMOST * NAP for sample in timer.samples())


def test_the_steps_of_an_epoch_leave_no_gap(tmp_path):
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(time.perf_counter())

    timer = StepTimer(cuda=False, warm_up_steps=0)
    train(tmp_path, timer, 20, callbacks=[Clock()], data_nap=NAP)
    # The clock ticks just after the timer at both ends of a step.
    walls = [after - before for before, after in itertools.pairwise(ends)]
    assert len(walls) == len(timer.samples())
    assert sum(sample.seconds for sample in timer.samples()) >= 0.9 * sum(walls)


def test_warm_up_lasts_from_the_beginning_to_the_end_of_the_first_step(tmp_path):
    timer = StepTimer(cuda=False)
    train(tmp_path, timer, 12, data_nap=NAP)
    assert timer.warm_up_seconds >= ALMOST * NAP * 2 * 4


def test_an_overflow_is_noted_where_it_happens(tmp_path, monkeypatch):
    model, steps = Line(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: steps.append(len(steps) + 1))
    skipped = property(lambda self: len(steps) == 3)
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", skipped)
    timer = StepTimer(cuda=False, warm_up_steps=1)
    train(tmp_path, timer, 20, model=model, optimizers=(optimizer, None))
    # Steps 2 to 5 are timed.
    assert [s.skipped for s in timer.samples()] == [False, True, False, False]


def test_a_second_training_forgets_the_first(tmp_path):
    timer = StepTimer(cuda=False)
    trainer = train(tmp_path, timer, 20)
    before = timer.samples()
    trainer.train()
    assert [s.accumulation for s in timer.samples()] == [4, 4, 4]
    assert timer.samples() != before


class Clock(TrainerCallback):
    """Lets a second go by in each step, of a time that does not run by itself."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def on_step_begin(self, args, state, control, **kwargs):
        self.now += 1.0


@pytest.mark.parametrize(
    ("enough_seconds", "slowest", "steps"),
    [
        (100.0, 0.0, 15),
        (0.0, 0.0, 5),
        (4.0, 0.0, 5),
        (4.5, 0.0, 10),
        (9.5, 0.0, 15),
        (9.5, 9.5, 5),
    ],
)
def test_a_run_that_has_lasted_long_enough_ends_with_its_epoch(
    tmp_path, monkeypatch, enough_seconds, slowest, steps
):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    # Another rank may be slower than this one.
    monkeypatch.setattr(timing, "gather", lambda mine: [mine, slowest])
    timer = StepTimer(cuda=False, warm_up_steps=1)
    enough = EnoughTimed(enough_seconds)
    trainer = train(tmp_path, timer, 18, epochs=3, callbacks=[clock, enough])
    # Five steps an epoch, of which the first one does not count.
    assert trainer.state.global_step == steps


@pytest.mark.parametrize("event", ["on_save", "on_evaluate"])
def test_what_is_done_beside_steps_is_in_none(tmp_path, event):
    timer = StepTimer(cuda=False, warm_up_steps=0)

    class Beside(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                # As the Trainer does after the step has ended.
                time.sleep(NAP)
                getattr(timer, event)(args, state, control)

    train(tmp_path, timer, 24, callbacks=[Beside()])
    # The first of the epoch is none, and neither is the fourth.
    assert len(timer.samples()) == 4
