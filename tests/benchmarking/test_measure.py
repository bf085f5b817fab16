import dataclasses
from pathlib import Path

import pytest
from playing import a_checkpoint, a_result, an_exchange

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.notes import Notes
from academic_pretraining.benchmarking.post_mortem import NO_PROBE
from academic_pretraining.benchmarking.probes import Outcome, ProbeResult, Purpose
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.errors import DeviceBusyError, MeasurementError
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.occupancy import Company

UNBEGUN = ProbeResult(probe=NO_PROBE, outcome=Outcome.CRASHED)


def test_a_session_that_ends_with_memory_is_carried_on(play, given):
    memory = a_result(8, Outcome.OUT_OF_MEMORY, requested_bytes=10, free_bytes=3)
    found = play([a_result(1, purpose=Purpose.MEMORY, peak_bytes=7), memory], [a_result(4)])
    (_, first), (history, second) = given
    assert [r.outcome for r in history] == [Outcome.OK, Outcome.OUT_OF_MEMORY]
    assert first != second
    assert found.outcome == "measured"
    assert found.memory_ramp == ((1, 7),)
    assert found.out_of_memory_micro_batch_size == 8
    assert (found.out_of_memory_requested_bytes, found.out_of_memory_free_bytes) == (10, 3)
    assert found.sessions == 2
    assert not first.exists()
    assert not second.exists()


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG])
def test_a_single_fault_is_forgotten_but_its_log_stays(play, given, outcome):
    done = a_result(1, purpose=Purpose.MEMORY)
    found = play([done, a_result(4, outcome, cause="cosmic ray")], [a_result(4)])
    (_, first), (history, second) = given
    assert history == [done]
    assert found.outcome == "measured"
    assert found.sessions == 2
    assert (first / "rank0.log").read_text() == "what happened"
    assert not second.exists()


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG])
def test_a_second_fault_is_raised_with_its_cause(play, given, outcome, tmp_path):
    log = str(tmp_path / "rank1.log")
    fault = a_result(4, outcome, cause="KeyError: 'x'", log=log)
    with pytest.raises(MeasurementError) as caught:
        play([fault], [a_result(2)], [fault], last_is_finished=False)
    assert len(given) == 3
    assert str(caught.value) == (
        f"pythia-14m on 2 x h200: naive: {outcome} in timing at micro-batch 4: KeyError: 'x' "
        f"(log: {log})"
    )
    assert all((directory / "rank0.log").exists() for _, directory in given[::2])


def test_memory_of_the_host_is_no_result_and_not_tried_again(play, given):
    host = a_result(4, Outcome.HOST_OUT_OF_MEMORY, cause="pinned", transient=False, log="1.log")
    with pytest.raises(MeasurementError) as caught:
        play([host], last_is_finished=False)
    assert str(caught.value).endswith(
        ": host out of memory in timing at micro-batch 4: pinned (log: 1.log)"
    )
    assert len(given) == 1


def test_memory_that_others_had_taken_is_no_result(play, given):
    taken = dataclasses.replace(UNBEGUN, outcome=Outcome.OUT_OF_MEMORY, cause="OOM", log="0.log")
    done = a_result(1, purpose=Purpose.MEMORY)
    with pytest.raises(MeasurementError) as caught:
        play([done, taken], [taken], last_is_finished=False)
    assert str(caught.value).endswith(
        ": out of memory before memory at micro-batch 4: OOM (log: 0.log)"
    )
    (_, first), (history, _) = given
    assert history == [done]
    assert (first / "rank0.log").exists()
    # Once only, it has gone again.
    found = play([done, taken], [a_result(4)])
    assert (found.outcome, found.out_of_memory_micro_batch_size) == ("measured", None)


def test_devices_are_taken_by_the_first_session_that_comes_to_use_them(play, taken):
    play([UNBEGUN], [a_result(1, purpose=Purpose.MEMORY)], [a_result(4)], unready=1)
    assert taken == [1]


@pytest.mark.parametrize(("offloading", "asks_at"), [(False, [0, 3]), (True, [3])])
def test_the_next_session_is_launched_while_nothing_is_timed_that_the_host_computes(
    play, monkeypatch, offloading, asks_at
):
    begun, asked = [], []
    monkeypatch.setattr(Sessions, "launch_ahead", lambda self, hardware: asked.append(len(begun)))
    memory = a_result(1, purpose=Purpose.MEMORY)
    play(
        [memory, a_result(4, step=1.0), a_result(2, step=1.0), an_exchange(), a_checkpoint()],
        method=Method(sharding=Sharding.ZERO_2, offloading=offloading),
        on_probe=begun.append,
    )
    assert asked == asks_at


def test_a_fault_that_would_come_again_is_raised_at_once(play, given):
    fault = a_result(4, Outcome.CRASHED, cause="KeyError: 'x'", log="rank1.log", transient=False)
    with pytest.raises(MeasurementError, match=r"KeyError: 'x' \(log: rank1\.log\)$"):
        play([fault], [a_result(4)])
    [(_, directory)] = given
    assert (directory / "rank0.log").exists()


def test_a_compilation_that_fails_is_left_out_and_said(play, given):
    failed = a_result(4, Outcome.COMPILE_FAILED, compile=True, cause="no end within 60 s")
    found = play([failed], [a_result(4)])
    (_, _), (history, _) = given
    assert [r.outcome for r in history] == [Outcome.COMPILE_FAILED]
    assert (found.compile, found.best.compiled) == ("failed", False)
    assert found.compile_error == "no end within 60 s (log: )"


@pytest.mark.parametrize("transient", [True, False])
def test_compiled_code_that_crashes_costs_no_result_that_is_there(play, given, transient):
    how = {"cause": "killed by SIGSEGV", "log": "rank1.log", "transient": transient}
    crash = a_result(4, Outcome.CRASHED, compile=True, **how)
    found = play([a_result(4), crash], *[[crash]] * transient, [])
    assert (found.outcome, found.compile, found.best.compiled) == ("measured", "failed", False)
    assert found.compile_error == "killed by SIGSEGV (log: rank1.log)"
    (history, directory) = given[-1][0], given[-2][1]
    assert [r.outcome for r in history] == [Outcome.OK, Outcome.COMPILE_FAILED]
    assert (directory / "rank0.log").exists()


def test_after_compilation_was_given_up_a_crash_is_tried_again_once(play):
    crash = a_result(4, Outcome.CRASHED, compile=True, transient=False)
    eager = a_result(2, Outcome.CRASHED, cause="killed")
    assert play([a_result(4), crash], [eager], []).compile == "failed"
    with pytest.raises(MeasurementError, match="killed"):
        play([a_result(4), crash], [eager], [eager], [])


def test_a_crash_without_compilation_is_no_result_whatever_was_there(play):
    crash = a_result(2, Outcome.CRASHED, cause="killed", transient=False)
    with pytest.raises(MeasurementError, match="killed"):
        play([a_result(4), crash], [])


@pytest.mark.slow
def test_a_real_measurement(tiny_config, tmp_path):
    begun = []
    config = tiny_config()
    found = measure(config, QUICK, sessions=Sessions(tmp_path / "scratch"), on_probe=begun.append)
    assert (found.outcome, found.compile, found.sessions) == ("measured", "off", 1)
    assert found.kernels == "eager"
    best = found.best
    assert best is not None
    assert found.timings == (best,)
    assert (best.micro_batch_size, best.gradient_accumulation_steps) == (1, 4)
    assert best.global_batch_size == config.recipe.global_batch_size
    assert best.step_seconds > 0
    assert [accumulation for accumulation, _ in best.samples] == [4] * 5
    assert found.memory_ramp == ()
    assert [probe.purpose for probe in begun] == [Purpose.TIMING]
    assert found.seconds["all"] >= found.seconds["launch"] + found.seconds["timing"]
    assert list(Path(tmp_path / "scratch").iterdir()) == []
    # Other tests may run meanwhile.
    assert best.other_cpu_share is not None
    assert 0 <= best.other_cpu_share <= 1


@pytest.mark.slow
@pytest.mark.thorough
def test_memory_that_really_runs_out_is_a_result(tiny_config, tmp_path, monkeypatch, alter):
    alter(monkeypatch, "faults.runs_out_of_memory")
    monkeypatch.setenv("FAULTY_RANKS", "1")
    found = measure(tiny_config(), QUICK, sessions=Sessions(tmp_path))
    assert (found.outcome, found.sessions) == ("out of memory", 2)
    assert found.out_of_memory_micro_batch_size == 1
    assert found.out_of_memory_requested_bytes == 2 * 2**30
    assert dataclasses.asdict(found)["best"] is None


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG, Outcome.OUT_OF_MEMORY])
def test_a_checkpoint_that_fails_costs_nothing_but_itself(play, given, outcome):
    failed = a_checkpoint(outcome=outcome, cause="disk full", save_seconds=None)
    found = play([a_result(4), failed], last_is_finished=False)
    assert len(given) == 1
    assert found.best is not None
    assert found.save_error == "disk full"
    assert (found.save_seconds, found.checkpoint_bytes) == (None, None)
    assert found.out_of_memory_micro_batch_size is None


def test_a_session_that_dies_on_its_way_to_the_checkpoint_costs_nothing_either(play, given):
    timed = [a_result(32, high=4, step=1.0), a_result(16, high=4, step=1.0)]
    dead = dataclasses.replace(UNBEGUN, transient=False, cause="no port")
    found = play([*timed, dead], [dead], last_is_finished=False)
    (_, _), (history, _) = given
    # What it was on its way to first: its next session goes on to the last one.
    assert history[-1].probe.purpose is Purpose.COMMUNICATION
    assert found.best is not None
    assert (found.communication_error, found.save_error) == ("no port", "no port")
    assert found.seconds["memory ramp"] == 0.0


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG, Outcome.OUT_OF_MEMORY])
def test_communication_that_cannot_be_seen_costs_neither_timing_nor_checkpoint(
    play, given, outcome
):
    failed = an_exchange(outcome=outcome, communication=(), cause="no CUPTI", transient=False)
    found = play([a_result(4), failed], [a_checkpoint()])
    (_, first), (history, _) = given
    assert [r.probe.purpose for r in history] == [Purpose.TIMING, Purpose.COMMUNICATION]
    assert (first / "rank0.log").exists()
    assert found.best.communication_share is None
    assert found.communication_error == "no CUPTI"
    assert found.save_seconds == 3.0
    assert found.out_of_memory_micro_batch_size is None


HELD = 14 * 2**30


@pytest.mark.parametrize(
    ("held", "company"),
    [(2**30, Company()), (HELD, Company(allowed=True))],
    ids=["little", "allowed"],
)
def test_memory_is_a_result_though_others_held_some(play, given, held, company):
    memory = a_result(8, Outcome.OUT_OF_MEMORY, others_bytes=held)
    found = play([memory], [a_result(4)], company=company)
    assert [r.outcome for r in given[1][0]] == [Outcome.OUT_OF_MEMORY]
    assert found.out_of_memory_micro_batch_size == 8


@pytest.mark.parametrize("purpose", [Purpose.TIMING, Purpose.COMMUNICATION, Purpose.SAVING])
def test_where_others_held_the_memory_nothing_of_the_setting_is_kept(
    play, given, tmp_path, purpose
):
    path = tmp_path / "notes.jsonl"
    memory = a_result(
        8, Outcome.OUT_OF_MEMORY, purpose, others_bytes=HELD, cause="too little", log="1.log"
    )
    with pytest.raises(DeviceBusyError) as caught:
        play([a_result(4), memory], [a_result(2)], notes=Notes(path, {}))
    assert str(caught.value) == (
        "pythia-14m on 2 x h200: naive: others came to its GPUs meanwhile: they held 14.0 GiB when "
        f"{purpose} at micro-batch 8 ran out of memory: too little (log: 1.log); its figures are "
        "not kept: run the same command when they are gone, or give --allow-busy-gpus"
    )
    [(_, directory)] = given
    assert (directory / "rank0.log").exists()
    assert not path.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space")], ids=repr)
@pytest.mark.parametrize(
    ("others", "allowed", "kept"), [("", False, 1), ("there", False, 0), ("there", True, 1)]
)
def test_what_was_noted_beside_others_is_forgotten_however_it_ends(
    play, tmp_path, error, others, allowed, kept
):
    path = tmp_path / "notes.jsonl"
    company = Company(allowed=allowed, now=lambda: others)
    with pytest.raises(type(error)):
        play([a_result(4), error], company=company, notes=Notes(path, {}))
    assert len(Notes(path, {}).recall()) == kept


def test_what_was_measured_beside_others_says_so_where_they_are_allowed(play, tmp_path):
    path = tmp_path / "notes.jsonl"
    said = "GPU 1 has 20.0 GiB in use"
    with pytest.raises(KeyboardInterrupt):
        play(
            [a_result(4), KeyboardInterrupt()],
            company=Company(allowed=True, first=said),
            notes=Notes(path, {}),
        )
    # Also where the next process is alone.
    found = play([a_result(2)], company=Company(allowed=True), notes=Notes(path, {}))
    assert (found.company, len(found.timings)) == (said, 2)
    assert play([a_result(4)], company=Company(allowed=True, now=lambda: said)).company == said
    assert play([a_result(4)]).company == ""


def test_what_others_came_to_is_not_kept(play, tmp_path):
    path = tmp_path / "notes.jsonl"
    company = Company(now=lambda: "GPU 1 has 20.0 GiB in use")
    with pytest.raises(DeviceBusyError) as caught:
        play([a_result(4)], company=company, notes=Notes(path, {}))
    assert str(caught.value) == (
        "pythia-14m on 2 x h200: naive: others came to its GPUs meanwhile: GPU 1 has 20.0 GiB in "
        "use; its figures are not kept: run the same command when they are gone, or give "
        "--allow-busy-gpus"
    )
    assert not path.exists()
