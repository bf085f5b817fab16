import dataclasses
import weakref

import pytest
import torch
from transformers import Trainer

from academic_pretraining.benchmarking import probe as probe_module
from academic_pretraining.benchmarking.build import build_model, build_model_for
from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.garbage import FreesCompilerGarbage
from academic_pretraining.benchmarking.probe import run_probe
from academic_pretraining.benchmarking.probes import Outcome, Probe, Purpose
from academic_pretraining.benchmarking.timing import StepTimer
from academic_pretraining.errors import MeasurementError
from academic_pretraining.methods import Method
from academic_pretraining.training_arguments import training_arguments_fields

TIMING = Probe(
    purpose=Purpose.TIMING,
    micro_batch_size=2,
    high=4,
    low=1,
    high_steps=2,
    epochs=2,
    compile=False,
    deadline_seconds=60.0,
)


@pytest.fixture(autouse=True)
def own_state(own_trainer_state):
    """Probe in this process."""


@pytest.fixture
def config(tiny_config):
    return tiny_config(Method(activation_checkpointing=True), workers=1, global_batch_size=16)


def test_a_probe_answers_what_it_was_asked(config, tmp_path):
    result = run_probe(config, TIMING, output_dir=str(tmp_path))
    assert result.probe == TIMING
    assert result.outcome is Outcome.OK
    # Steps 4 4 1 4 4 1, less the first of each epoch and the warm-up of two.
    assert [s.accumulation for s in result.samples] == [1, 4, 1]
    assert result.graphs == 0
    assert result.peak_bytes > 2**20
    assert result.device_bytes > result.peak_bytes
    assert 0 < result.build_seconds < result.seconds
    assert 0 < result.warm_up_seconds < result.seconds
    assert sum(s.seconds for s in result.samples) < result.seconds


@pytest.mark.parametrize(
    ("warm_up_steps", "accumulations"), [(0, [4, 1, 4, 1]), (3, [4, 1]), (5, [1]), (6, [])]
)
def test_the_warm_up_is_as_long_as_asked(config, tmp_path, warm_up_steps, accumulations):
    probe = dataclasses.replace(TIMING, warm_up_steps=warm_up_steps)
    result = run_probe(config, probe, output_dir=str(tmp_path))
    assert [s.accumulation for s in result.samples] == accumulations


@pytest.mark.parametrize(
    ("enough_seconds", "accumulations"), [(0.0, [1]), (3600.0, [1, 4, 1]), (None, [1, 4, 1])]
)
def test_a_run_ends_with_an_epoch_when_it_is_enough(
    config, tmp_path, enough_seconds, accumulations
):
    probe = dataclasses.replace(TIMING, enough_seconds=enough_seconds)
    result = run_probe(config, probe, output_dir=str(tmp_path))
    assert [s.accumulation for s in result.samples] == accumulations


@pytest.fixture
def watched(monkeypatch) -> list[Trainer]:
    """The Trainer of a probe, at the end of its training."""
    trainers = []
    monkeypatch.setattr(
        probe_module, "check_in_force", lambda trainer, config, compiled: trainers.append(trainer)
    )
    return trainers


def test_only_what_makes_the_run_short_departs_from_what_is_exported(config, tmp_path, watched):
    run_probe(config, TIMING, output_dir=str(tmp_path))
    [trainer] = watched
    fields = training_arguments_fields(config, config.plan_at(2), torch_compile=False)
    found = {name: getattr(trainer.args, name) for name in fields}
    different = {name: value for name, value in found.items() if value != fields[name]}
    # The Trainer itself reads "none" as an empty list.
    assert different == {"gradient_accumulation_steps": 4, "max_steps": 6, "report_to": []}


def test_a_step_lies_between_the_last_collection_and_what_is_timed():
    assert Effort().warm_up_steps == probe_module._COLLECTED_STEPS + 1
    assert Effort().high_steps == Effort().warm_up_steps + 4


@pytest.mark.parametrize(
    ("warm_up_steps", "high", "freed"),
    # Of one micro-batch a step, two steps show what is compiled.
    [(0, 4, 0), (1, 4, 1), (2, 4, 1), (3, 4, 2), (2, 1, 2), (3, 1, 2)],
)
def test_memory_is_freed_before_a_step_s_end_is_timed(
    config, tmp_path, watched, warm_up_steps, high, freed
):
    probe = dataclasses.replace(TIMING, warm_up_steps=warm_up_steps, high=high)
    run_probe(config, probe, output_dir=str(tmp_path))
    [trainer] = watched
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.index(FreesCompilerGarbage) < kinds.index(StepTimer)
    callback = trainer.callback_handler.callbacks[kinds.index(FreesCompilerGarbage)]
    assert callback.steps == freed  # pyright: ignore


def test_the_run_is_as_long_as_asked_and_leaves_nothing_on_disk(config, tmp_path, watched):
    run_probe(config, TIMING, output_dir=str(tmp_path))
    [trainer] = watched
    assert trainer.state.global_step == TIMING.optimizer_steps == 6
    assert trainer.args.gradient_accumulation_steps == 4
    assert trainer.train_dataset is not None
    assert len(trainer.train_dataset) == 9 * 2  # pyright: ignore
    assert len(trainer.get_train_dataloader()) == TIMING.micro_batches_per_epoch
    assert list(tmp_path.rglob("*")) == []


def test_nothing_of_a_probe_outlives_it(config, tmp_path, monkeypatch):
    models = []

    def build(*args, **kwargs):
        model = build_model_for(*args, **kwargs)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(probe_module, "build_model_for", build)
    run_probe(config, TIMING, output_dir=str(tmp_path))
    assert [model() for model in models] == [None]


def test_what_the_training_raises_is_raised(config, tmp_path, monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory.")

    def build(*args, **kwargs):
        raise error

    monkeypatch.setattr(probe_module, "build_model_for", build)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run_probe(config, TIMING, output_dir=str(tmp_path))
    assert caught.value is error


def test_a_setting_that_is_not_in_force_gives_no_result(tiny_config, tmp_path):
    # Two workers are declared, but this process is alone.
    config = tiny_config(workers=2)
    with pytest.raises(MeasurementError, match="data parallel is False instead of True"):
        run_probe(config, TIMING, output_dir=str(tmp_path))


def test_graphs_of_torch_compile_are_counted():
    torch.compiler.reset()
    before = probe_module._compiled_graphs()
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    assert probe_module._compiled_graphs() == before
    compiled(torch.ones(2))
    assert probe_module._compiled_graphs() == before + 1
    compiled(torch.ones(2))
    assert probe_module._compiled_graphs() == before + 1


@pytest.mark.slow
def test_ranks_agree_on_the_slowest_step_and_the_largest_peak(recorded):
    session = recorded(Method())
    [result] = session.end.results
    first, second = session.facts
    assert first["samples"] != second["samples"]
    slowest = [max(pair) for pair in zip(*(_seconds(f) for f in (first, second)), strict=True)]
    assert [s.seconds for s in result.samples] == slowest
    assert result.peak_bytes >= max(first["peak bytes"], second["peak bytes"])


def _seconds(facts) -> list[float]:
    return [sample["seconds"] for sample in facts["samples"]]


def test_a_checkpoint_is_written_timed_and_weighed(config, tmp_path):
    probe = dataclasses.replace(
        TIMING, purpose=Purpose.SAVING, high=1, low=0, high_steps=1, epochs=1
    )
    result = run_probe(config, probe, output_dir=str(tmp_path))
    assert result.samples == ()
    assert result.save_seconds is not None
    assert 0 < result.save_seconds < result.seconds
    [folder] = tmp_path.glob("checkpoint-*")
    # Weights and two moments in fp32, and little beside.
    parameters = sum(p.numel() for p in build_model(config.recipe, attention=None).parameters())
    assert 12 * parameters < result.checkpoint_bytes < 12 * parameters + 2**20
    assert (folder / "optimizer.pt").exists()


def test_nothing_else_writes_one(config, tmp_path):
    result = run_probe(config, TIMING, output_dir=str(tmp_path))
    assert (result.save_seconds, result.checkpoint_bytes) == (None, 0)
    assert list(tmp_path.glob("checkpoint-*")) == []
