import dataclasses
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import (
    DEVICES,
    GIB,
    NORMAL,
    Device,
    best_size,
    config_on,
    search,
    sizes,
    story,
    timed,
)

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.prediction import best_timing, timings
from academic_pretraining.benchmarking.prediction import predicted_step_seconds as predicted_seconds
from academic_pretraining.benchmarking.probes import Outcome, Purpose
from academic_pretraining.methods import Sharding
from academic_pretraining.models import get_model


@dataclass(kw_only=True)
class Timed(Device):
    """A device whose micro-batches take given seconds, and nothing comes on top of them."""

    seconds_of: dict[int, float]
    overhead_seconds: float = 0.0

    def micro_step_seconds(self, size: int, *, compiled: bool = False) -> float:
        return self.seconds_of.get(size, float(size))


@settings(max_examples=200)
@given(device=DEVICES, compiled_time=st.floats(0.3, 3.0))
def test_where_compilation_may_not_pay_the_faster_of_both_wins(device, compiled_time):
    device = dataclasses.replace(device, compiled_time=compiled_time)
    config = config_on(sharding=Sharding.ZERO_3)
    history = search(config, device)
    tried = [r.probe for r in history if r.probe.purpose is Purpose.TIMING]
    assert not tried[0].compile
    fitting = timings(config, history)
    if not fitting:
        # Compiled it might have needed less.
        assert any(probe.compile for probe in tried)
        return
    best = best_timing(config, history)
    assert best is not None
    predicted = predicted_seconds(config, best)
    assert predicted == min(predicted_seconds(config, r) for r in fitting)
    compiled = [i for i, result in enumerate(history) if result.probe.compile]
    # It begins where what was timed before is fastest, and ends where it fails.
    before = best_size(config, history[: compiled[0]])
    assert before in (None, history[compiled[0]].probe.micro_batch_size)
    failed = [i for i, r in enumerate(history) if r.outcome is Outcome.COMPILE_FAILED]
    assert failed in ([], compiled[-1:])
    # Beaten where the eager one is fastest, it is tried at larger sizes only.
    compiled_sizes = [history[i].probe.micro_batch_size for i in compiled]
    if history[compiled[0]].outcome is Outcome.OUT_OF_MEMORY:
        # By a smaller one it may be turned round still.
        del compiled_sizes[0]
    assert best.probe.compile or failed or compiled_sizes == sorted(compiled_sizes)


@pytest.mark.parametrize(("compiled_time", "wins"), [(2.0, False), (0.5, True)])
def test_compilation_is_timed_last_and_goes_on_only_where_it_pays(compiled_time, wins):
    config = config_on(sharding=Sharding.ZERO_3)
    history = search(config, Device(compiled_time=compiled_time))
    tried = [(r.probe.micro_batch_size, r.probe.compile) for r in history]
    tried = tried[len(sizes(history, Purpose.MEMORY, Outcome.OK)) :]
    assert tried == [(64, False), (32, False), (64, True), *[(32, True)] * wins]
    best = best_timing(config, history)
    assert best is not None
    assert best.probe.compile is wins


def test_compiled_code_may_win_at_a_size_that_fits_it_alone():
    config = config_on(sharding=Sharding.ZERO_3)
    # 60 GiB more at 64 than at 1 without compilation, and 38 with it.
    device = Device(per_example=1.7 * GIB, compiled_share=0.6, launch_seconds=0.25)
    history = search(config, dataclasses.replace(device, compiled_time=1.1))
    tried = [r.probe for r in history if r.probe.purpose is Purpose.TIMING]
    assert [(p.micro_batch_size, p.compile) for p in tried] == [
        *((32, False), (16, False)),
        *((32, True), (64, True)),
    ]
    assert best_size(config, history) == 64


def test_compiled_code_that_does_not_fit_is_given_up():
    config = config_on(sharding=Sharding.ZERO_3)
    history = search(config, Device(compiled_share=3.0))
    last = history[-1]
    assert (last.probe.micro_batch_size, last.probe.compile) == (32, True)
    assert last.outcome is Outcome.OUT_OF_MEMORY
    assert best_size(config, history) == 64


@pytest.mark.parametrize("takes_more", [{"compiled_share": 1.1}, {"compiled_held": 1.3}])
def test_compiled_code_that_takes_more_is_tried_at_a_smaller_size(takes_more):
    config = config_on(sharding=Sharding.ZERO_3)
    device = Device(
        memory=80 * GIB,
        static=10 * GIB,
        per_example=2 * GIB,
        compiled_time=0.6,
        **({"compiled_share": 0.9} | takes_more),
    )
    history = search(config, device)
    assert story(history) == "m1 m4 m16 t32 t16 c32! c16 c8"
    best = best_timing(config, history)
    assert best is not None
    assert (best.probe.micro_batch_size, best.probe.compile) == (16, True)


def test_where_compilation_fails_it_is_done_without():
    config = config_on(sharding=Sharding.ZERO_3)
    history = search(config, Device(compile_fails_at=(64,)))
    tried = [r.probe for r in history if r.probe.purpose is Purpose.TIMING]
    assert [(p.micro_batch_size, p.compile) for p in tried] == [
        *((64, False), (32, False)),
        (64, True),
    ]
    assert best_size(config, history) == 64


def test_compilation_that_saves_memory_makes_room_for_a_larger_size():
    config = config_on()
    history = search(config, Device(compiled_share=0.5))
    assert timed(history)[:2] == [64, 128]
    assert best_size(config, history) == 128


def test_compilation_that_costs_memory_leads_to_smaller_sizes():
    config = config_on()
    history = search(config, Device(compiled_share=3.0))
    assert sizes(history, Purpose.TIMING, Outcome.OUT_OF_MEMORY) == [64, 32]
    assert best_size(config, history) == 16


@pytest.mark.parametrize(
    ("slow", "noise", "then"),
    [(2.0, 0.0, [16]), (1.08, 0.0, [16]), (1.05, 0.0, []), (1.05, 0.05, [16])],
)
def test_a_smaller_size_that_is_faster_is_found(slow, noise, then):
    # Of its time 32 saves 48%, 4.4% and 1.7%; with noise, nobody can tell whether it is so little.
    config = config_on()
    device = Device(slower_from=64, slow=slow, compiled_share=1.0, noise=noise)
    history = search(config, device)
    assert timed(history) == [64, 32, *then]
    assert best_size(config, history) == 32


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        # 3.9% and 4.1%.
        ({64: 1.0, 32: 0.961}, [64, 32]),
        ({64: 1.0, 32: 0.959}, [64, 32, 16]),
        # The last step decides, not all the way.
        ({64: 1.0, 32: 0.9, 16: 0.89}, [64, 32, 16]),
        ({64: 1.0, 32: 0.9, 16: 0.8, 8: 0.85}, [64, 32, 16, 8]),
    ],
)
def test_smaller_sizes_follow_while_each_halving_gains_enough(seconds, expected):
    config = config_on()
    real = {size: config.plan_at(size).gradient_accumulation_steps for size in seconds}
    device = Timed(
        seconds_of={size: whole / real[size] for size, whole in seconds.items()},
        compiled_share=1.0,
    )
    assert timed(search(config, device)) == expected


def test_sizes_that_lie_close_are_judged_by_what_a_halving_would_gain():
    # 117, 90, 78 and 65 examples, of which each step saves 5% a halving.
    config = dataclasses.replace(
        config_on(gpus=7, batch_tolerance=0.01), recipe=get_model("roberta")
    )
    plans = {plan.micro_batch_size: plan for plan in config.plans()}
    seconds = {size: 0.95 ** -math.log2(size) for size in plans}
    device = Timed(
        seconds_of={
            size: seconds[size] / plan.gradient_accumulation_steps for size, plan in plans.items()
        },
        per_example=0.5 * GIB,
        compiled_share=1.0,
    )
    history = search(config, device, dataclasses.replace(NORMAL, most_timings=4))
    assert len(timed(history)) == 4


@pytest.mark.parametrize("failing", [(64,), (1, 2, 4, 8, 16, 32, 64)])
def test_after_a_failed_compilation_nothing_is_compiled(failing):
    config = config_on()
    history = search(config, Device(compiled_share=1.0, compile_fails_at=failing))
    outcomes = [r.outcome for r in history]
    assert outcomes.count(Outcome.COMPILE_FAILED) == 1
    after = history[outcomes.index(Outcome.COMPILE_FAILED) + 1 :]
    assert after
    assert not any(r.probe.compile for r in after)
    assert best_size(config, history) == 64


def test_on_a_cpu_every_size_that_was_named_is_timed():
    effort = QUICK.within({"micro_batch_sizes": (2, 4, 8)})
    slower = Device(slower_from=4, slow=9.0)
    assert story(search(config_on("cpu", 2), slower, effort)) == "c2 c4 c8"
    # Where one is killed for want of memory, no larger one is tried.
    assert story(search(config_on("cpu", 2), Device(memory=9 * GIB), effort)) == "c2 c4 c8!"
