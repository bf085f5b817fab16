"""What compilation leaves behind, and when it is freed."""

import gc
import itertools
import weakref

import pytest
import torch
from torch._dynamo.guards import CheckFunctionManager
from transformers import TrainerControl, TrainerState, TrainingArguments

from academic_pretraining.benchmarking.garbage import FreesCompilerGarbage


class Trace:
    """What refers to itself, as a trace of the compiler does."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def trained(tmp_path, callback, *, accumulation=4, steps=4, torch_compile=True):
    """Walk through a training with garbage in each micro-batch; say after which it was freed."""
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", torch_compile=torch_compile
    )
    state, control = TrainerState(), TrainerControl()
    callback.on_train_begin(arguments, state, control)
    freed = []
    for step, micro_batch in itertools.product(range(1, steps + 1), range(1, accumulation + 1)):
        garbage = weakref.ref(Trace())
        last = micro_batch == accumulation
        end = callback.on_step_end if last else callback.on_substep_end
        end(arguments, state, control)
        if garbage() is None:
            freed.append((step, micro_batch))
    return freed


@pytest.mark.usefixtures("no_collector")
def test_it_comes_after_the_first_micro_batches_and_at_the_end_of_the_first_steps(tmp_path):
    callback = FreesCompilerGarbage(2)
    expected = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4)]
    assert trained(tmp_path, callback) == expected
    # Another training begins anew.
    assert trained(tmp_path, callback) == expected


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_it_takes_no_time_of_steps_that_are_timed(tmp_path, steps):
    freed = trained(tmp_path, FreesCompilerGarbage(steps), accumulation=1)
    assert freed == [(step, 1) for step in range(1, steps + 1)]


@pytest.mark.usefixtures("no_collector")
def test_without_compilation_it_does_nothing(tmp_path):
    assert trained(tmp_path, FreesCompilerGarbage(9), torch_compile=False) == []


@pytest.mark.usefixtures("no_collector")
def test_a_frame_s_tensors_stay_when_the_collector_came_while_it_was_traced(monkeypatch):
    # When this fails, PyTorch frees them by itself: take FreesCompilerGarbage out.
    begin = CheckFunctionManager.__init__

    def begin_and_collect(self, *arguments, **how):
        begin(self, *arguments, **how)
        gc.collect()

    @torch.compiler.disable
    def release(parameters):
        pass

    def hook(module, output):
        for _, parameter in itertools.chain(module.named_parameters(), {}.items()):
            assert parameter.requires_grad
        release(module)
        return output

    monkeypatch.setattr(CheckFunctionManager, "__init__", begin_and_collect)
    output = torch.ones(4)
    held = weakref.ref(output)
    torch.compile(hook, backend="eager")(torch.nn.Linear(4, 4), output)
    del output
    # What Dynamo does itself.
    gc.collect(1)
    assert held() is not None
    gc.collect()
    assert held() is None
