import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from academic_pretraining.benchmarking.probes import (
    Outcome,
    Probe,
    ProbeResult,
    Purpose,
    StepSample,
)

numbers = st.integers(0, 2**40)
seconds = st.floats(0, 1e6)
positive = st.integers(1, 4096)

probes = st.builds(
    Probe,
    purpose=st.sampled_from(Purpose),
    micro_batch_size=positive,
    high=positive,
    low=numbers,
    high_steps=positive,
    epochs=positive,
    compile=st.booleans(),
    deadline_seconds=seconds,
)
samples = st.builds(
    StepSample,
    accumulation=positive,
    seconds=seconds,
    data_seconds=seconds,
    optimizer_seconds=seconds,
    skipped=st.booleans(),
)
results = st.builds(
    ProbeResult,
    probe=probes,
    outcome=st.sampled_from(Outcome),
    samples=st.lists(samples, max_size=3).map(tuple),
    peak_bytes=numbers,
    reserved_bytes=numbers,
    leftover_bytes=numbers,
    device_bytes=numbers,
    requested_bytes=st.none() | numbers,
    free_bytes=st.none() | numbers,
    graphs=numbers,
    build_seconds=seconds,
    warm_up_seconds=seconds,
    seconds=seconds,
    cause=st.text(),
    log=st.text(),
)


def a_probe(**changes) -> Probe:
    asked = {
        "purpose": Purpose.TIMING,
        "micro_batch_size": 4,
        "high": 5,
        "high_steps": 3,
        "compile": False,
        "deadline_seconds": 60.0,
    }
    return Probe(**{**asked, **changes})


@given(results)
def test_a_result_survives_json(result):
    read = ProbeResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert read == result
    # Enumerations compare equal to their text, so that equality alone does not tell.
    assert isinstance(read.outcome, Outcome)
    assert isinstance(read.probe.purpose, Purpose)


def test_reading_leaves_what_it_reads_alone():
    data = ProbeResult(probe=a_probe(), outcome=Outcome.OK).to_dict()
    before = json.dumps(data)
    ProbeResult.from_dict(data)
    assert json.dumps(data) == before


@pytest.mark.parametrize(
    ("low", "epochs", "optimizer_steps", "micro_batches"),
    [(0, 1, 3, 15), (0, 2, 6, 15), (2, 1, 4, 17), (2, 3, 12, 17)],
)
def test_an_epoch_ends_with_a_shorter_step_where_there_is_one(
    low, epochs, optimizer_steps, micro_batches
):
    probe = a_probe(low=low, epochs=epochs)
    assert probe.optimizer_steps == optimizer_steps
    assert probe.micro_batches_per_epoch == micro_batches


def test_a_probe_says_what_it_does():
    assert a_probe().description == "timing at micro-batch 4"
    compiled = a_probe(purpose=Purpose.MEMORY, compile=True)
    assert compiled.description == "memory at micro-batch 4, compiled"
