import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from academic_pretraining.benchmarking import host
from academic_pretraining.benchmarking.host import HostUse, HostWatch, host_use, other_cpu_share


def use(own: float, busy: float, wall: float = 10.0) -> HostUse:
    return HostUse(own_seconds=own, busy_seconds=busy, wall_seconds=wall)


def test_own_work_is_told_from_that_of_others():
    spinning = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(spinning) as other:
        began = time.perf_counter()
        before = host_use()
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        passed = host_use() - before
        lasted = time.perf_counter() - began
        other.kill()
    # However long others kept it waiting.
    assert 0.29 < passed.own_seconds < passed.wall_seconds + 0.01
    assert passed.wall_seconds <= lasted
    # The kernel counts in hundredths of a second.
    assert passed.busy_seconds > passed.own_seconds - 0.05


def test_only_the_cores_that_this_process_may_run_on_count(monkeypatch):
    core = SimpleNamespace(user=4.0, nice=1.0, system=2.0, idle=100.0, iowait=5.0, guest=4.0)
    monkeypatch.setattr("psutil.cpu_times", lambda percpu: [core, core, core])
    monkeypatch.setattr(host, "allowed_cores", lambda: {0, 2})
    assert host_use().busy_seconds == 14.0


@pytest.mark.parametrize("resumed_at", [0, 2, 1000])
@pytest.mark.parametrize(
    ("steps", "found"), [(1, None), (2, use(0.0, 0.0, 0.0)), (4, use(1.0, 4.0, 1.0))]
)
def test_it_is_looked_at_from_the_end_of_the_warm_up_on(monkeypatch, resumed_at, steps, found):
    moments = [use(1.0, 5.0, 100.0), use(2.0, 9.0, 101.0)]
    if steps == 2:
        moments[1] = moments[0]
    monkeypatch.setattr(host, "host_use", lambda: moments.pop(0))
    watch = HostWatch(warm_up_steps=2)
    nothing: Any = None
    state: Any = SimpleNamespace(global_step=resumed_at)
    watch.on_train_begin(nothing, state, nothing)
    for _ in range(steps):
        state.global_step += 1
        watch.on_step_end(nothing, state, nothing)
    watch.on_train_end(nothing, nothing, nothing)
    assert watch.use == found


@pytest.mark.parametrize(
    ("ranks", "share"),
    [
        ([], None),
        ([None, None], None),
        ([use(0.0, 0.0, 0.0)], None),
        # 40 core-seconds in 10 s, of which 20 are the two ranks' own: 2 of 8 cores.
        ([use(10.0, 40.0), use(10.0, 39.0)], 0.25),
        # The busier of two nodes.
        ([use(10.0, 20.0), use(10.0, 20.0), use(10.0, 60.0), use(10.0, 60.0)], 0.5),
        # Clocks that differ a little.
        ([use(10.0, 19.9), use(10.0, 19.9)], 0.0),
        ([use(0.0, 90.0)], 1.0),
    ],
)
def test_the_rest_is_others_work(monkeypatch, ranks, share):
    monkeypatch.setattr(host, "allowed_cores", lambda: set(range(8)))
    monkeypatch.setattr(host, "usable_cores", lambda: 8)
    assert other_cpu_share(ranks, 2) == (share if share is None else pytest.approx(share))


def test_under_a_quota_nothing_is_known(monkeypatch):
    monkeypatch.setattr(host, "allowed_cores", lambda: set(range(8)))
    monkeypatch.setattr(host, "usable_cores", lambda: 4)
    assert other_cpu_share([use(10.0, 40.0)], 1) is None
