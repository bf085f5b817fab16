"""From a profiler's events to seconds of communication, with events as the profiler makes them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity
from transformers import Trainer, TrainerControl, TrainingArguments

from academic_pretraining.benchmarking import communication
from academic_pretraining.benchmarking.build import build_model, synthetic_dataset
from academic_pretraining.benchmarking.communication import (
    CommunicationTimer,
    communication_sample,
    communication_seconds,
    transfers,
)
from academic_pretraining.benchmarking.probes import CommunicationSample

REDUCE = "ncclDevKernel_AllReduce_Sum_f16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
GATHER = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def event(name: str, microseconds: float, device: DeviceType = DeviceType.CUDA):
    passed = SimpleNamespace(elapsed_us=lambda: microseconds)
    return SimpleNamespace(name=name, device_type=device, time_range=passed)


def sample(accumulation: int, seconds: float, kernels: int = 1) -> CommunicationSample:
    return CommunicationSample(accumulation=accumulation, kernels=kernels, seconds=seconds)


def test_kernels_of_nccl_are_added_up_and_nothing_else():
    events = [
        event(REDUCE, 100.0),
        event(GATHER, 20.0),
        event("ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)", 3.0),
        # The same time again, as an annotation; and what the host does.
        event("nccl:all_reduce", 100.0),
        event("nccl:_all_gather_base", 20.0),
        event(REDUCE, 7.0, DeviceType.CPU),
        event("c10d::allreduce_", 9.0, DeviceType.CPU),
        event("void at::native::vectorized_elementwise_kernel<4>", 50.0),
        event("Memcpy DtoD (Device -> Device)", 5.0),
    ]
    found = communication_sample(events, 3)
    assert (found.accumulation, found.kernels) == (3, 3)
    assert found.seconds == pytest.approx(123e-6)


def test_the_rank_that_waits_least_shows_the_transfer():
    first = [sample(3, 0.5), sample(1, 0.1)]
    second = [sample(3, 0.2), sample(1, 0.4)]
    assert transfers([first, second]) == (sample(3, 0.2), sample(1, 0.1))
    assert transfers([[], []]) == ()


def test_what_grows_with_accumulation_is_a_line():
    # 0.2 s a step and 0.1 s a micro-batch; one step waited.
    samples = [sample(3, 0.5, 7), sample(3, 0.5, 7), sample(3, 9.0, 7), sample(1, 0.3, 3)]
    assert communication_seconds(samples, 64) == pytest.approx(0.2 + 64 * 0.1)
    assert communication_seconds(samples, 1) == pytest.approx(0.3)


def test_what_happens_once_a_step_does_not_grow_by_noise():
    samples = [sample(3, 0.011, 4), sample(3, 0.012, 4), sample(1, 0.010, 4)]
    assert communication_seconds(samples, 512) == pytest.approx(0.011)


def test_time_that_shrinks_with_accumulation_is_noise():
    samples = [sample(3, 0.2, 7), sample(1, 0.3, 3)]
    assert communication_seconds(samples, 512) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "samples", [[], [sample(3, 0.0, 0), sample(1, 0.0, 0)], [sample(3, 0.1), sample(3, 0.1)]]
)
def test_too_little_seen_is_not_known(samples):
    assert communication_seconds(samples, 4) is None


@pytest.mark.usefixtures("own_trainer_state")
def test_steps_after_the_warm_up_are_profiled_until_each_length_was_seen_twice(
    tiny_config, tmp_path, monkeypatch
):
    # Stand in for NCCL with what an optimizer step and each micro-batch do on a CPU.
    seen: list[set[str]] = []

    def keep(events, accumulation):
        seen.append({event.name for event in events})
        return sample(accumulation, 0.0)

    monkeypatch.setattr(communication, "communication_sample", keep)
    recipe = tiny_config(workers=1).recipe
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=3,
        max_steps=30,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    timer = CommunicationTimer(2, activities=(ProfilerActivity.CPU,))
    trainer = Trainer(
        model=build_model(recipe, attention="eager"),
        args=arguments,
        # Steps of 3, 3 and 1, twice.
        train_dataset=synthetic_dataset(recipe, 7),
        callbacks=[timer],
    )
    trainer.train()
    assert [s.accumulation for s in timer.samples] == [1, 3, 3, 1]
    assert trainer.state.global_step == 6
    for names in seen:
        assert "aten::embedding_dense_backward" in names
        assert any("adam" in name.lower() for name in names)


def test_a_step_that_overflows_exchanges_less_and_is_left_out():
    timer = CommunicationTimer(0, activities=(ProfilerActivity.CPU,))
    control = TrainerControl()
    now: tuple[Any, ...] = (None, SimpleNamespace(global_step=5), control)
    for skipped in (True, False):
        timer.on_step_begin(*now)
        torch.ones(1).add_(1)
        timer.on_optimizer_step(*now, optimizer=SimpleNamespace(step_was_skipped=skipped))
        timer.on_step_end(*now)
    assert timer.samples == [CommunicationSample(accumulation=1, kernels=0, seconds=0)]
    assert not control.should_training_stop
