import contextlib
import dataclasses

import pytest

from academic_pretraining.benchmarking import session
from academic_pretraining.benchmarking.effort import QUICK, Effort
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.gpus import Hardware
from academic_pretraining.occupancy import Company

TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")


def leftovers(scratch):
    return list(scratch.iterdir()) if scratch.exists() else []


def test_nobody_stops_waiting_for_the_others_before_the_deadline():
    longest = max(Effort().timing_deadline_seconds, Effort().memory_deadline_seconds)
    assert longest < session.COLLECTIVES_SECONDS


def test_a_session_is_launched_when_it_is_wanted_and_over_in_the_end(tmp_path, unlaunched):
    sessions = Sessions(tmp_path)
    with sessions.open(TWO) as launched:
        assert unlaunched == [launched]
        assert launched.hardware == TWO
        assert launched.directory.is_dir()
    assert unlaunched[0].ended
    assert len(unlaunched) == 1
    assert leftovers(tmp_path) == []


def test_an_error_ends_it_too(tmp_path, unlaunched):
    with pytest.raises(KeyboardInterrupt), Sessions(tmp_path).open(TWO):
        raise KeyboardInterrupt
    assert [launched.ended for launched in unlaunched] == [True]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("more", [False, True])
def test_the_next_one_is_launched_ahead_where_it_is_wanted(tmp_path, unlaunched, ahead, more):
    sessions = Sessions(tmp_path, ahead=ahead)
    sessions.more = more
    with sessions.open(TWO) as first:
        sessions.launch_ahead(TWO)
        sessions.launch_ahead(TWO)
        assert len(unlaunched) == 1 + (ahead and more)
    with sessions.open(TWO) as second:
        assert unlaunched == [first, second]
        assert second.directory != first.directory
    assert leftovers(tmp_path) == []


def test_what_was_launched_for_nothing_is_ended(tmp_path, unlaunched):
    sessions = Sessions(tmp_path, ahead=True)
    sessions.more = True
    sessions.launch_ahead(TWO)
    assert len(leftovers(tmp_path)) == 2
    sessions.close()
    sessions.close()
    assert unlaunched[0].ended
    assert leftovers(tmp_path) == []


def test_what_waits_is_not_taken_for_other_hardware(tmp_path, unlaunched):
    sessions = Sessions(tmp_path, ahead=True)
    sessions.more = True
    sessions.launch_ahead(TWO)
    four = dataclasses.replace(TWO, gpus_per_node=4)
    with sessions.open(four) as launched:
        assert launched.hardware == four
        assert not unlaunched[0].directory.exists()
    assert leftovers(tmp_path) == []


def test_what_waits_is_not_taken_for_abandoned(tmp_path, unlaunched):
    sessions = Sessions(tmp_path, ahead=True)
    sessions.more = True
    sessions.launch_ahead(TWO)
    with Sessions(tmp_path).open(TWO):
        assert unlaunched[0].directory.is_dir()
    sessions.close()


@pytest.mark.slow
def test_settings_follow_each_other_without_waiting_for_a_launch(tmp_path, tiny_config):
    config = tiny_config(workers=1)
    entered = []

    @contextlib.contextmanager
    def alone():
        # Ready, but without having used a device: nobody has asked yet.
        [asked] = [p for p in tmp_path.glob("session-*") if (p / "rank0.ready").exists()]
        assert not (asked / "request.json").exists()
        entered.append(asked.name)
        yield Company()

    sessions = Sessions(tmp_path, alone=alone, ahead=True)
    sessions.more = True
    assert measure(config, QUICK, sessions=sessions).outcome == "measured"
    [waiting] = [p for p in tmp_path.glob("session-*") if p.is_dir()]
    sessions.more = False
    found = measure(config, QUICK, sessions=sessions)
    assert found.outcome == "measured"
    assert entered[1] == waiting.name != entered[0]
    assert found.restart_seconds is not None
    assert found.restart_seconds > found.seconds["launch"]
    sessions.close()
    assert leftovers(tmp_path) == []
