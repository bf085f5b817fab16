"""What only a real GPU can show; `pytest -m gpu`."""

import os

import pytest

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import detect_hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import get_model
from academic_pretraining.records import Measurement

pytestmark = pytest.mark.gpu

BRIEF = Effort(timing_seconds=2.0, most_timings=1, most_refinements=0, micro_batch_sizes=(4,))


def measured(method: Method, tmp_path) -> Measurement:
    hardware = detect_hardware(os.environ)
    assert not hardware.gpu.is_cpu, "run this on a machine with a GPU"
    config = TrainingConfig(hardware=hardware, recipe=get_model("pythia-14m"), method=method)
    return measure(config, BRIEF, sessions=Sessions(tmp_path))


@pytest.mark.parametrize(
    "method",
    [
        Method(),
        Method(free_lunch=True),
        Method(free_lunch=True, activation_checkpointing=True),
        Method(sharding=Sharding.ZERO_2, offloading=True),
        Method(sharding=Sharding.ZERO_3, offloading=True),
        Method(free_lunch=True, sharding=Sharding.FSDP_FULL_SHARD, offloading=True),
    ],
    ids=lambda method: method.label,
)
def test_a_setting_is_measured(method, tmp_path):
    found = measured(method, tmp_path)
    assert found.outcome == "measured"
    assert found.compile == ("on" if method.free_lunch else "off")
    assert found.best is not None
    assert found.best.mfu is not None
    assert 0 < found.best.mfu < 1
    assert 0 < found.best.peak_bytes < found.device_bytes


def test_checkpointing_saves_memory(tmp_path):
    without = measured(Method(), tmp_path).best
    saving = measured(Method(free_lunch=True, activation_checkpointing=True), tmp_path).best
    assert without is not None
    assert saving is not None
    assert saving.peak_bytes < without.peak_bytes
