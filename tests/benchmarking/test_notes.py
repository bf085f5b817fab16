import json
import os
import subprocess
import sys
import time

import pytest
from playing import a_checkpoint, a_result, an_exchange

from academic_pretraining.benchmarking import measure as measure_module
from academic_pretraining.benchmarking import notes as notes_module
from academic_pretraining.benchmarking.notes import Notes
from academic_pretraining.benchmarking.post_mortem import NO_PROBE
from academic_pretraining.benchmarking.probes import Outcome, ProbeResult, Purpose

HERE = {"host": "a", "devices": ["GPU-1"], "effort": {"sizes": (1, 2)}}
RAMP = a_result(1, purpose=Purpose.MEMORY, peak_bytes=7)
TIMED = a_result(4)
DEEP = "[" * 100_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work" / "step.jsonl"


def test_what_was_added_is_recalled_with_its_failures(path):
    memory = a_result(8, Outcome.OUT_OF_MEMORY, requested_bytes=10, cause="of the device")
    first = Notes(path, HERE)
    assert first.recall() == []
    first.add([RAMP])
    first.add([RAMP, memory])
    second = Notes(path, HERE)
    assert second.recall() == [RAMP, memory]
    second.add([TIMED])
    assert Notes(path, HERE).recall() == [RAMP, memory, TIMED]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG, Outcome.HOST_OUT_OF_MEMORY])
def test_what_is_no_answer_is_not_kept(path, outcome):
    Notes(path, HERE).add([a_result(4, outcome)])
    assert not path.exists()


@pytest.mark.parametrize("name", HERE)
def test_another_place_begins_anew(path, name):
    Notes(path, HERE).add([RAMP])
    other = Notes(path, HERE | {name: "other"})
    assert other.recall() == []
    other.add([TIMED])
    assert Notes(path, HERE | {name: "other"}).recall() == [TIMED]


def test_what_is_a_day_old_counts_no_more(path, monkeypatch):
    Notes(path, HERE).add([RAMP])
    later = time.time() + notes_module._LASTS_SECONDS
    monkeypatch.setattr(time, "time", lambda: later)
    assert Notes(path, HERE).recall() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines[:-1], lines[-1][:50]],
        lambda lines: [*lines[:-1], "[]"],
        lambda lines: [*lines[:-1], json.dumps(json.loads(lines[-1]) | {"seconds": "long"})],
        lambda lines: [*lines[:-1], json.dumps(json.loads(lines[-1]) | {"samples": 3})],
        lambda lines: [*lines[:-1], json.dumps(json.loads(lines[-1]) | {"more": 3})],
        lambda lines: [*lines[:-1], DEEP],
    ],
)
def test_what_is_damaged_ends_what_is_recalled(path, change):
    Notes(path, HERE).add([RAMP, TIMED])
    path.write_text("\n".join(change(path.read_text().splitlines())))
    again = Notes(path, HERE)
    assert again.recall() == [RAMP]
    again.add([TIMED])
    assert Notes(path, HERE).recall() == [RAMP, TIMED]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[1]", "\x00", '{"where": 1}\n{}', DEEP, "x" * (2**24 + 1)),
        json.dumps({"where": HERE, "company": ""}),
        json.dumps({"where": HERE, "began_at": 10**400, "company": ""}),
    ],
    ids=lambda text: text[:20],
)
def test_what_are_no_notes_are_none(path, text):
    path.parent.mkdir()
    path.write_text(text)
    assert Notes(path, HERE).recall() == []


def test_a_pipe_or_a_device_is_not_read_for_notes(path):
    path.parent.mkdir()
    os.mkfifo(path)
    assert Notes(path, HERE).recall() == []
    path.unlink()
    path.symlink_to("/dev/zero")
    assert Notes(path, HERE).recall() == []


def test_a_disk_that_takes_no_more_costs_only_the_notes(tmp_path):
    (tmp_path / "work").write_text("in the way")
    Notes(tmp_path / "work" / "step.jsonl", HERE).add([RAMP])


def test_a_stopped_measurement_goes_on_with_the_next_probe(play, path, given):
    with pytest.raises(KeyboardInterrupt):
        play([RAMP, a_result(4, step=2.0), KeyboardInterrupt()], notes=Notes(path, HERE))
    found = play([a_result(16, step=1.0)], notes=Notes(path, HERE))
    (_, _), (history, _) = given
    assert history == [RAMP, a_result(4, step=2.0)]
    assert found.memory_ramp == ((1, 7),)
    assert [timing.micro_batch_size for timing in found.timings] == [4, 16]
    # The probes of the stopped one are part of what it took.
    assert found.seconds["all"] >= RAMP.seconds + TIMED.seconds


@pytest.mark.parametrize("pending", [a_checkpoint(), an_exchange()])
def test_a_session_that_dies_before_a_last_probe_is_followed_by_another(
    play, path, given, monkeypatch, pending
):
    unbegun = ProbeResult(probe=NO_PROBE, outcome=Outcome.CRASHED, cause="EADDRINUSE", log="0.log")
    monkeypatch.setattr(measure_module, "next_probe", lambda *_: pending.probe)
    with pytest.raises(KeyboardInterrupt):
        play([RAMP, TIMED, KeyboardInterrupt()], notes=Notes(path, HERE))
    given.clear()
    found = play([unbegun], [a_checkpoint()], notes=Notes(path, HERE), silent=1)
    assert [history[:2] for history, _ in given] == [[RAMP, TIMED]] * 2
    assert (found.outcome, found.save_seconds) == ("measured", 3.0)


MEASURE = """
import json, sys
from pathlib import Path
from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.config import config_from_dict
from experiments.sweep import sweep

class Reporter:
    def starts(self, *_): ...
    def recalls(self, *_): ...
    def ends(self, config, record, note): print("end", record is not None, flush=True)
    def probes(self, probe): print(probe.description, flush=True)

# Long enough for whole steps: none is longer, so that noise makes no third probe.
effort = QUICK.within({"micro_batch_sizes": (1, 2), "timing_seconds": 20.0})
sweep([config_from_dict(json.loads(sys.argv[2]))], Path(sys.argv[1]), effort, Reporter())
"""


@pytest.mark.slow
def test_a_killed_script_loses_the_probe_in_progress_alone(tmp_path, tiny_config):
    from academic_pretraining.config import config_to_dict

    config = json.dumps(config_to_dict(tiny_config(workers=1)))
    command = [sys.executable, "-c", MEASURE, str(tmp_path), config]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    first, second = killed.stdout.readline(), killed.stdout.readline()
    killed.kill()
    killed.wait()
    assert first != second
    [kept] = (tmp_path / "work").iterdir()
    done = len(kept.read_text().splitlines()) - 1
    assert done >= 1
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    *probes, end = again.stdout.splitlines()
    assert end == "end True"
    assert probes[0] == second.strip()
    assert first.strip() not in probes
    assert os.listdir(tmp_path / "work") == []  # noqa: PTH208
