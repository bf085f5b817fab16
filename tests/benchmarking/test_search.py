import dataclasses
import math
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated import GIB, NORMAL, ONCE, Device, search, story

from academic_pretraining.benchmarking.effort import QUICK, Effort
from academic_pretraining.benchmarking.prediction import best_timing, timings, waiting_bytes
from academic_pretraining.benchmarking.prediction import predicted_step_seconds as predicted_seconds
from academic_pretraining.benchmarking.probes import Outcome, ProbeResult, Purpose
from academic_pretraining.benchmarking.search import next_probe
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import get_model


@dataclass(kw_only=True)
class Timed(Device):
    """A device whose micro-batches take given seconds, and nothing comes on top of them."""

    seconds_of: dict[int, float]
    overhead_seconds: float = 0.0

    def micro_step_seconds(self, size: int, *, compiled: bool = False) -> float:
        return self.seconds_of.get(size, float(size))


def config_on(
    gpu_type: str = "a100", gpus: int = 2, sharding: Sharding = Sharding.NONE, **changes
) -> TrainingConfig:
    return TrainingConfig(
        hardware=Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type=gpu_type),
        recipe=get_model("pythia-160m"),
        method=Method(free_lunch=True, sharding=sharding),
        **changes,
    )


def sizes(history: list[ProbeResult], purpose: Purpose, outcome: Outcome) -> list[int]:
    found = [r.probe for r in history if r.outcome is outcome]
    return [probe.micro_batch_size for probe in found if probe.purpose is purpose]


def timed(history: list[ProbeResult]) -> list[int]:
    return sizes(history, Purpose.TIMING, Outcome.OK)


def best_size(config: TrainingConfig, history: list[ProbeResult]) -> int | None:
    best = best_timing(config, history)
    return best.probe.micro_batch_size if best else None


devices = st.builds(
    Device,
    memory=st.floats(8 * GIB, 141 * GIB),
    static=st.floats(0, 100 * GIB),
    per_example=st.floats(0.001 * GIB, 20 * GIB),
    compiled_share=st.floats(0.3, 3.0),
    overhead_seconds=st.floats(1e-4, 1.0),
    per_example_seconds=st.floats(1e-5, 2.0),
    launch_seconds=st.floats(0, 0.1),
    slower_from=st.none() | st.integers(1, 512),
    compile_fails_at=st.sets(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256, 512])).map(tuple),
)


@settings(deadline=None, max_examples=200)
@given(device=devices, gpus=st.sampled_from([1, 2, 3, 6, 8]), most=st.integers(1, 6))
@example(
    # 128 examples fit, but not with the inputs of a real step, which need 256 bytes more.
    device=Device(memory=8 * GIB, static=0, per_example=22314982, compiled_share=3),
    gpus=1,
    most=1,
)
def test_every_search_ends_with_the_fastest_of_what_it_timed(device, gpus, most):
    config = config_on(gpus=gpus, batch_tolerance=0.01)
    history = search(config, device, dataclasses.replace(NORMAL, most_timings=most))
    fitted = timed(history)
    # One that fits in short steps alone does not count.
    assert len(timings(config, history)) <= most
    assert len(set(fitted)) == len(fitted)
    best = best_timing(config, history)
    outcomes = [r.outcome for r in history]
    failed = outcomes.index(Outcome.COMPILE_FAILED) if Outcome.COMPILE_FAILED in outcomes else 999
    if best is None:
        smallest = history[-1].probe
        assert smallest.micro_batch_size == config.plans()[0].micro_batch_size
        needed = device.peak(smallest) + waiting_bytes(config, smallest)
        assert needed > max(0.94 * device.memory, device.memory - GIB)
        return

    def truth(size: int) -> float:
        accumulation = config.plan_at(size).gradient_accumulation_steps
        return device.overhead_seconds + accumulation * device.micro_step_seconds(size)

    predicted = predicted_seconds(config, best)
    assert predicted == pytest.approx(truth(best.probe.micro_batch_size))
    training = [result.probe.micro_batch_size for result in timings(config, history)]
    assert set(training) <= set(fitted)
    assert predicted == pytest.approx(min(truth(size) for size in training))
    assert not any(r.probe.compile for r in history[failed + 1 :])


@settings(deadline=None, max_examples=200)
@given(device=devices, compiled_time=st.floats(0.3, 3.0))
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
    assert (last.probe.micro_batch_size, last.probe.compile) == (64, True)
    assert last.outcome is Outcome.OUT_OF_MEMORY
    assert best_size(config, history) == 64


def test_where_compilation_fails_it_is_done_without():
    config = config_on(sharding=Sharding.ZERO_3)
    history = search(config, Device(compile_fails_at=(64,)))
    tried = [r.probe for r in history if r.probe.purpose is Purpose.TIMING]
    assert [(p.micro_batch_size, p.compile) for p in tried] == [
        *((64, False), (32, False)),
        (64, True),
    ]
    assert best_size(config, history) == 64


def test_a_gpu_that_gains_with_size_is_filled():
    config = config_on()
    # 94% of 80 GiB hold 71 examples, and 64 is the largest size that divides.
    history = search(config, Device(compiled_share=1.0))
    assert sizes(history, Purpose.MEMORY, Outcome.OK) == [1, 4, 32]
    assert timed(history)[0] == 64
    assert best_size(config, history) == 64
    assert Outcome.OUT_OF_MEMORY not in [r.outcome for r in history]


def test_memory_is_probed_eagerly_and_with_gradients_alive():
    history = search(config_on(), Device())
    memory = [r.probe for r in history if r.probe.purpose is Purpose.MEMORY]
    assert memory
    assert all(not p.compile and p.high == 2 for p in memory)
    assert all(r.probe.compile for r in history if r.probe.purpose is Purpose.TIMING)


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


@pytest.mark.parametrize(
    ("failing", "compiled_share", "size", "later"),
    [
        # Compiled, the smallest size fits after all, and what it takes says which others do.
        (0, 1.0, 1, [1, 8, 64]),
        (1, 1.0, 4, [2, 2, 1]),
        (2, 1.0, 32, [8, 16, 16, 8]),
        # It takes half of what ran out.
        (2, 0.5, 32, [8, 16, 16, 128]),
        (3, 1.0, 64, [32, 16]),
        (4, 0.5, 128, [32]),
        (4, 1.0, 32, [16]),
    ],
)
def test_out_of_memory_at_any_probe_leads_on(failing, compiled_share, size, later):
    config, device = config_on(), Device(compiled_share=compiled_share)
    history: list[ProbeResult] = []
    while probe := next_probe(config, NORMAL, history):
        assert len(history) < 30
        failed = ProbeResult(probe=probe, outcome=Outcome.OUT_OF_MEMORY)
        history.append(failed if len(history) == failing else device.run(probe))
    assert history[failing].probe.micro_batch_size == size
    assert [r.probe.micro_batch_size for r in history[failing + 1 :]] == later
    assert best_timing(config, history) is not None


def test_nothing_fits():
    config = config_on()
    history = search(config, Device(static=100 * GIB))
    assert {r.outcome for r in history} == {Outcome.OUT_OF_MEMORY}
    assert {r.probe.micro_batch_size for r in history} == {1}
    assert best_timing(config, history) is None


def test_a_single_plan_needs_no_memory_ramp():
    config = config_on(gpus=1024)
    history = search(config, Device())
    assert [r.probe.purpose for r in history] == [Purpose.TIMING]
    assert timed(history) == [1]


def test_on_a_cpu_every_size_that_was_named_is_timed():
    effort = QUICK.within({"micro_batch_sizes": (2, 4, 8)})
    slower = Device(slower_from=4, slow=9.0)
    assert story(search(config_on("cpu", 2), slower, effort)) == "c2 c4 c8"
    # Where one is killed for want of memory, no larger one is tried.
    assert story(search(config_on("cpu", 2), Device(memory=9 * GIB), effort)) == "c2 c4 c8!"


def test_a_cpu_is_timed_without_a_memory_ramp():
    config = config_on("cpu", 2)
    history = search(config, Device(), QUICK)
    assert [r.probe.purpose for r in history] == [Purpose.TIMING]
    assert timed(history) == [1]


@pytest.mark.parametrize("wish", [1.0, 4.0])
def test_a_run_of_an_unknown_speed_ends_when_it_was_long_enough(wish):
    effort = dataclasses.replace(QUICK, timing_seconds=wish)
    [result] = search(config_on("cpu", 2), Device(), effort)
    assert (result.probe.epochs, result.probe.enough_seconds) == (QUICK.epochs, wish)
    # Whatever it lasts, the first epoch holds two long steps and a short one to fit.
    assert result.probe.high_steps - QUICK.warm_up_steps == 2
    assert result.probe.low


def test_only_the_wanted_sizes_are_considered():
    history = search(
        config_on(), Device(), dataclasses.replace(NORMAL, micro_batch_sizes=(2, 8, 7))
    )
    assert {r.probe.micro_batch_size for r in history} == {2, 8}


@given(
    per_example=st.floats(1e-6, 10), gpus=st.sampled_from([1, 2, 8, 1024]), wish=st.floats(1, 60)
)
def test_timing_runs_hold_real_steps_or_two_lengths_to_extrapolate_from(per_example, gpus, wish):
    config = config_on(gpus=gpus)
    device = Device(per_example_seconds=per_example, launch_seconds=0.0)
    for result in search(config, device, dataclasses.replace(NORMAL, timing_seconds=wish)):
        probe = result.probe
        if probe.purpose is Purpose.MEMORY or result.outcome is not Outcome.OK:
            continue
        real = config.plan_at(probe.micro_batch_size).gradient_accumulation_steps
        lengths = {s.accumulation for s in result.samples}
        assert probe.high in lengths
        assert probe.high <= real
        timed = [s.seconds for s in result.samples if s.accumulation == probe.high]
        # All but the guess of it is exact.
        assert len(timed) >= (4 if max(timed) < 2.9 else 3)
        assert lengths == ({real} if not probe.low else {probe.low, probe.high})


@pytest.mark.parametrize(
    ("per_example_seconds", "high", "steps", "warm_up_steps"),
    # At 64 examples: 2 s a step of 3 (and 5 s a real one), and 38 s.
    [(0.01, 3, 7, 3), (0.2, 3, 5, 2)],
)
def test_steps_of_seconds_are_timed_earlier(per_example_seconds, high, steps, warm_up_steps):
    history = search(config_on(), Device(per_example_seconds=per_example_seconds), NORMAL)
    first = next(r.probe for r in history if r.probe.purpose is Purpose.TIMING)
    assert (first.micro_batch_size, first.high) == (64, high)
    assert (first.high_steps, first.warm_up_steps) == (steps, warm_up_steps)


@pytest.mark.parametrize(
    ("device", "effort", "saved"),
    [
        (Device(), ONCE, [1]),
        (Device(), NORMAL, []),
        (Device(), Effort(largest_checkpoint_bytes=1e9), []),
        # What does not fit is not saved.
        (Device(static=100 * GIB), ONCE, []),
    ],
)
def test_one_checkpoint_is_written_in_the_end(device, effort, saved):
    history = search(config_on(), device, effort)
    assert sizes(history, Purpose.SAVING, Outcome.OK) == saved
    assert not saved or history[-1].probe.purpose is Purpose.SAVING
    assert not any(r.probe.compile for r in history if r.probe.purpose is Purpose.SAVING)


@pytest.mark.parametrize(
    ("gpu_type", "gpus", "device", "effort", "last"),
    [
        ("a100", 2, Device(), ONCE, [Purpose.COMMUNICATION, Purpose.SAVING]),
        ("a100", 2, Device(), dataclasses.replace(ONCE, saves=False), [Purpose.COMMUNICATION]),
        ("a100", 2, Device(), dataclasses.replace(ONCE, profiles=False), [Purpose.SAVING]),
        # Nobody to talk to, and no GPU to look at.
        ("a100", 1, Device(), ONCE, [Purpose.SAVING]),
        ("cpu", 2, Device(), ONCE, [Purpose.SAVING]),
        # What does not fit is not looked at.
        ("a100", 2, Device(static=100 * GIB), ONCE, []),
    ],
)
def test_communication_is_looked_at_between_timing_and_saving(gpu_type, gpus, device, effort, last):
    purposes = [r.probe.purpose for r in search(config_on(gpu_type, gpus), device, effort)]
    needed = [p for p in purposes if p in (Purpose.MEMORY, Purpose.TIMING)]
    assert purposes == needed + last


def test_communication_is_looked_at_eagerly_in_steps_of_two_lengths():
    [probe] = [
        r.probe
        for r in search(config_on(), Device(), dataclasses.replace(ONCE, saves=False))
        if r.probe.purpose is Purpose.COMMUNICATION
    ]
    assert (probe.micro_batch_size, probe.high, probe.low, probe.compile) == (1, 3, 1, False)
    assert probe.optimizer_steps > probe.warm_up_steps + 3


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.HUNG, Outcome.OUT_OF_MEMORY])
def test_communication_that_was_not_seen_is_not_looked_at_again(outcome):
    history = search(config_on(), Device(), dataclasses.replace(ONCE, saves=False))
    failed = dataclasses.replace(history[-1], outcome=outcome, samples=())
    assert failed.probe.purpose is Purpose.COMMUNICATION
    probe = next_probe(config_on(), ONCE, [*history[:-1], failed])
    assert probe is not None
    assert probe.purpose is Purpose.SAVING


def test_communication_that_runs_out_of_memory_opens_no_size():
    config, history = config_on(), []
    while probe := next_probe(config, ONCE, history):
        # 32 examples run out without compilation, which takes as much, and so are not compiled.
        fails = (Purpose.MEMORY, 32), (Purpose.COMMUNICATION, 1)
        failed = (probe.purpose, probe.micro_batch_size) in fails
        out = ProbeResult(probe=probe, outcome=Outcome.OUT_OF_MEMORY)
        history.append(out if failed else Device(compiled_share=1.0).run(probe))
    assert story(history) == "m1 m4 m32! m8 m16 c16 c8 c1! s1"
