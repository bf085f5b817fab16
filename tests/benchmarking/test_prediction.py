"""What of the timings would train: those that leave room for the inputs of a whole step."""

import pytest
from playing import a_result

from academic_pretraining.benchmarking.prediction import timings, waiting_bytes
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import get_model

GIB, MIB = 2**30, 2**20
DEVICE = 24 * GIB


def config_on(gpu_type: str, model: str) -> TrainingConfig:
    return TrainingConfig(
        hardware=Hardware(num_nodes=1, gpus_per_node=1, gpu_type=gpu_type),
        recipe=get_model(model),
        method=Method(),
    )


def trains(config: TrainingConfig, peak: float, reserved: float = 0.0, high: int = 2) -> bool:
    result = a_result(
        64,
        peak_bytes=round(peak),
        reserved_bytes=round(reserved),
        device_bytes=DEVICE,
        high=high,
    )
    return bool(timings(config, [result]))


@pytest.fixture
def images() -> tuple[TrainingConfig, int]:
    """4,096 images, of which a short run of 64 at once holds few: 2.3 GiB are missing."""
    config = config_on("a100", "vit")
    waiting = waiting_bytes(config, a_result(64).probe)
    assert waiting > 2 * GIB
    return config, waiting


def test_inputs_that_were_not_seen_leave_what_any_predicted_peak_leaves(images):
    config, waiting = images
    # With the allocator's cache, which it can let go of, all is full.
    full = DEVICE - 600 * MIB
    assert trains(config, 0.94 * DEVICE - waiting - MIB, full)
    assert not trains(config, 0.94 * DEVICE - waiting + MIB, full)


def test_what_has_run_may_fill_more_where_a_context_stays_free(images):
    config, waiting = images
    left = DEVICE - GIB - waiting
    assert left + waiting > 0.94 * DEVICE
    assert trains(config, left - MIB, left - MIB)
    assert not trains(config, left - MIB, left + MIB)
    assert not trains(config, left + MIB)


def test_inputs_that_were_all_there_need_no_more_room(images):
    config, _ = images
    assert trains(config, 0.99 * DEVICE, 0.99 * DEVICE, high=64)
    # Where they are in the resident memory anyway.
    assert trains(config_on("cpu", "vit"), 0.99 * DEVICE)
