"""A compilation that fails or does not end costs the compilation, not the setting."""

from pathlib import Path

import pytest

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.methods import Method

pytestmark = pytest.mark.slow

EFFORT = Effort(
    timing_seconds=1.0,
    most_timings=1,
    most_refinements=0,
    micro_batch_sizes=(1,),
    saves=False,
    high_steps=2,
    epochs=2,
    warm_up_steps=1,
    timing_deadline_seconds=16.0,
)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        # What becomes of it is the same.
        pytest.param("fails_to_compile", "no kernel for this", marks=pytest.mark.thorough),
        ("compiles_for_ever", "no end of the compilation within 16 s; the stacks are in the log"),
    ],
)
def test_the_setting_is_measured_without_compilation_and_says_so(
    fault, cause, tiny_config, tmp_path, monkeypatch, alter
):
    alter(monkeypatch, f"faults.{fault}")
    monkeypatch.setenv("FAULTY_RANKS", "1")
    found = measure(tiny_config(Method(free_lunch=True)), EFFORT, sessions=Sessions(tmp_path))
    assert (found.outcome, found.compile) == ("measured", "failed")
    assert cause in found.compile_error
    log = Path(found.compile_error.partition("(log: ")[2].removesuffix(")"))
    assert ("_sleep_for_ever" if "for_ever" in fault else "Traceback") in log.with_name(
        "rank1.log"
    ).read_text()
    assert found.best is not None
    assert not found.best.compiled
