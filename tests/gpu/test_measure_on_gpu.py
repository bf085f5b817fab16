"""What only a real GPU can show; `pytest -m gpu`."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator

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
CHECKPOINTED = Method(free_lunch=True, activation_checkpointing=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Iterator[Callable[[Method], Measurement]]:
    """Measure a method, once for all tests, and have the next one's session launched meanwhile."""
    hardware = detect_hardware(os.environ)
    assert not hardware.gpu.is_cpu, "run this on a machine with a GPU"
    sessions = Sessions(tmp_path_factory.mktemp("sessions"), ahead=True)
    sessions.more = True

    @functools.cache
    def run(method: Method) -> Measurement:
        config = TrainingConfig(hardware=hardware, recipe=get_model("pythia-14m"), method=method)
        return measure(config, BRIEF, sessions=sessions)

    yield run
    sessions.close()


@pytest.mark.parametrize(
    "method",
    [
        Method(),
        Method(free_lunch=True),
        CHECKPOINTED,
        Method(sharding=Sharding.ZERO_2, offloading=True),
        Method(sharding=Sharding.ZERO_3, offloading=True),
        Method(free_lunch=True, sharding=Sharding.FSDP_FULL_SHARD, offloading=True),
    ],
    ids=lambda method: method.label,
)
def test_a_setting_is_measured(method, measured):
    found = measured(method)
    assert found.outcome == "measured"
    assert found.compile == ("on" if method.free_lunch else "off")
    assert found.best is not None
    assert found.best.mfu is not None
    assert 0 < found.best.mfu < 1
    assert 0 < found.best.peak_bytes < found.device_bytes


def test_checkpointing_saves_memory(measured):
    without, saving = measured(Method()).best, measured(CHECKPOINTED).best
    assert without is not None
    assert saving is not None
    assert saving.peak_bytes < without.peak_bytes


def test_the_gradients_that_nccl_exchanged_do_not_end_a_session(tmp_path):
    # 1.6 GB of them, 2% of an H100: a new session followed one of seven probes, and three of eight.
    hardware = detect_hardware(os.environ)
    if hardware.gpus_per_node < 2:
        pytest.skip("needs two GPUs")
    config = TrainingConfig(hardware=hardware, recipe=get_model("pythia-410m"), method=Method())
    brief = dataclasses.replace(BRIEF, micro_batch_sizes=(1, 2, 4), profiles=False, saves=False)
    sessions = Sessions(tmp_path, ahead=False)
    try:
        assert measure(config, brief, sessions=sessions).sessions == 1
    finally:
        sessions.close()
