"""A measurement whose sessions end as a test says, without processes."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from academic_pretraining.benchmarking import measure as measure_module
from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.launch import SessionEnd
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.notes import Notes
from academic_pretraining.benchmarking.probes import (
    CommunicationSample,
    Outcome,
    Probe,
    ProbeResult,
    Purpose,
    StepSample,
)
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.methods import Method
from academic_pretraining.occupancy import Company

ENVIRONMENT = {
    "kernels": "sdpa",
    "model_flops_per_example": 1000,
    "ceiling_flops": 1e9,
    "device_name": "NVIDIA H200",
    "device_bytes": 140 * 2**30,
}


def timed_accumulations(probe: Probe) -> list[int]:
    """Give the micro-batches of each step that the Trainer times in a run.

    An epoch's first step and the warm-up are left out.
    """
    epoch = [probe.high] * probe.high_steps + [probe.low] * (probe.low > 0)
    return epoch[probe.warm_up_steps :] + epoch[1:] * (probe.epochs - 1)


def a_result(size: int = 4, outcome=Outcome.OK, purpose=Purpose.TIMING, **changes) -> ProbeResult:
    probe = {name: changes.pop(name) for name in ("compile", "high") if name in changes}
    step = changes.pop("step", 1.0)
    asked = Probe(
        **{
            "purpose": purpose,
            "micro_batch_size": size,
            "high": 2,
            "high_steps": 6,
            "compile": False,
            "deadline_seconds": 60.0,
            **probe,
        }
    )
    sample = StepSample(
        accumulation=asked.high,
        seconds=step,
        data_seconds=0.0,
        optimizer_seconds=0.0,
        skipped=False,
    )
    samples = (sample, sample) if outcome is Outcome.OK else ()
    changes = {"device_bytes": 2**40, **changes}
    return ProbeResult(probe=asked, outcome=outcome, samples=samples, **changes)


def a_checkpoint(**changes) -> ProbeResult:
    figures = {
        "save_seconds": 3.0,
        "checkpoint_bytes": 10**9,
        "save_peak_bytes": 100,
        "seconds": 9.0,
    }
    return a_result(1, purpose=Purpose.SAVING, **(figures | changes))


def seen(accumulation: int, seconds: float, kernels: int) -> CommunicationSample:
    return CommunicationSample(accumulation=accumulation, kernels=kernels, seconds=seconds)


def an_exchange(**changes) -> ProbeResult:
    # 0.01 s a step and 0.02 s a micro-batch.
    samples = (seen(3, 0.07, 5), seen(1, 0.03, 3))
    figures: dict[str, Any] = {"communication": samples}
    return a_result(1, purpose=Purpose.COMMUNICATION, **(figures | changes))


@pytest.fixture
def given() -> list[tuple[list[ProbeResult], Path]]:
    """The history and the folder that each session was given."""
    return []


@pytest.fixture
def taken() -> list[int]:
    """After how many sessions the devices were taken, each time."""
    return []


@pytest.fixture
def play(monkeypatch, tiny_config, tmp_path, given, taken, unlaunched):
    """Measure with sessions that end as a list says.

    The first `unready` ones never load, and the first `silent` ones tell nothing of their device.
    """

    def run(
        *sessions: Sequence[ProbeResult | BaseException],
        last_is_finished: bool = True,
        unready: int = 0,
        gpu_type: str = "h200",
        workers: int = 2,
        notes: Notes | None = None,
        company: Company | None = None,
        method: Method | None = None,
        silent: int = 0,
        on_probe: Callable[[Probe], None] = lambda probe: None,
    ):
        ends = list(sessions)

        def alone():
            taken.append(len(given) - 1)
            return contextlib.nullcontext(company or Company())

        def run_session(launched, config, effort, history, *, on_ready, on_probe, on_result):
            directory = launched.directory
            given.append((list(history), directory))
            assert list(directory.iterdir()) == []
            if len(given) > unready:
                on_ready()
            (directory / "rank0.log").write_text("what happened")
            results = []
            for result in ends.pop(0):
                if isinstance(result, BaseException):
                    raise result
                on_probe(result.probe)
                results.append(result)
                if result.outcome is Outcome.OK:
                    on_result(result)
            end = SessionEnd(
                results=results,
                environment=ENVIRONMENT if len(given) > silent else {},
                start_seconds=2.0,
                start_wait_seconds=1.5,
            )
            end.finished = last_is_finished and not ends
            return end

        monkeypatch.setattr(measure_module, "run_session", run_session)
        config = tiny_config(method, gpu_type=gpu_type, workers=workers, global_batch_size=64)
        where = Sessions(tmp_path / "new" / "scratch", alone=alone)
        return measure(config, Effort(), sessions=where, notes=notes, on_probe=on_probe)

    return run
