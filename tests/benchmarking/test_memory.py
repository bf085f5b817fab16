"""From the first peak to the largest micro-batch: around the walls, and seldom into them."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import GIB, NORMAL, Device, search, story

from academic_pretraining.benchmarking.prediction import best_timing, waiting_bytes
from academic_pretraining.benchmarking.probes import Probe, Purpose
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import get_model

NAIVE, FREE_LUNCH = Method(), Method(free_lunch=True)
ZERO_3 = Method(free_lunch=True, sharding=Sharding.ZERO_3)


@dataclass(kw_only=True)
class Measured(Device):
    """A device of which some peaks, in GiB, were measured elsewhere; the others are too large."""

    eager: dict[int, float]
    compiled: dict[int, float] = dataclasses.field(default_factory=dict)

    def peak_at(self, size: int, *, compiled: bool) -> float:
        return GIB * (self.compiled if compiled else self.eager).get(size, math.inf)


def config_on(method: Method, gpus: int = 2, batch: int = 1024, **changes) -> TrainingConfig:
    recipe = dataclasses.replace(get_model("pythia-410m"), global_batch_size=batch)
    return TrainingConfig(
        hardware=Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type="a100-40gb"),
        recipe=recipe,
        method=method,
        **changes,
    )


def test_after_out_of_memory_the_sizes_between_are_tried():
    # pythia-410m, naive, on two H100s (artifacts/results), and an A100 of 40 GB.
    device = Measured(memory=39.39 * GIB, eager={1: 20.1, 2: 32.4, 4: 55.0})
    history = search(config_on(NAIVE), device)
    assert story(history) == "m1 m4! m2 t2 t1"
    best = best_timing(config_on(NAIVE), history)
    assert best is not None
    assert best.probe.micro_batch_size == 2


@pytest.mark.parametrize(
    ("static", "per_example", "batch", "expected"),
    [
        # In GiB, of 40; 37.6 may be used.
        (38.5, 1, 768, "m1 m4! m2! t1"),
        # Two peaks, and the line decides without a wall: of 38.5 too little would be left.
        (34.5, 1, 768, "m1 m4 t3 t2"),
        # It decides below a wall, too.
        (36.5, 1, 768, "m1 m4! m2 t1"),
        (10, 8, 768, "m1 m4! m2 t3 t2"),
        (10, 8, 15, "m1 m5! m3 t3 t1"),
        (10, 8, 14, "m1 m7! m2 t2 t1"),
        # No size is left between.
        (10, 8, 25, "m1 m5! t1"),
    ],
)
def test_below_a_wall_two_peaks_are_enough(static, per_example, batch, expected):
    device = Device(memory=40 * GIB, static=static * GIB, per_example=per_example * GIB)
    assert story(search(config_on(NAIVE, gpus=1, batch=batch), device)) == expected


@pytest.mark.parametrize(
    ("compiled_share", "expected"),
    [
        # Eager 4 take 26 GiB of 24; compiled 15, as 2 say, which take 9.5.
        (0.5, "m1 m4! m2 c2 c4"),
        # 8 take 22.9 GiB, and 22.5.
        (0.43, "m1 m4! m2 c2 c4"),
        (0.42, "m1 m4! m2 c2 c8"),
        # What takes as much runs out where the other did.
        (1.0, "m1 m4! m2 c2 c1"),
        # 24.8 GiB.
        (0.945, "m1 m4! m2 c2 c1"),
    ],
)
def test_where_compiled_code_takes_less_no_eager_wall_bars_it(compiled_share, expected):
    device = Device(memory=24 * GIB, per_example=5.5 * GIB, compiled_share=compiled_share)
    assert story(search(config_on(FREE_LUNCH, gpus=1), device)) == expected


@pytest.mark.parametrize(
    ("fails_at", "expected"),
    [
        (32, "m1 m4 m32 c64! c32! t64 t32"),
        # After 4 GiB and 3 for each example, which leave room for 16, compilation fails.
        (16, "m1 m4 m32 c64! c32! c4 c16! t64"),
    ],
)
def test_compiled_code_that_ran_out_bars_no_eager_size(fails_at, expected):
    device = Device(compiled_share=3.0, compile_fails_at=(fails_at,))
    assert story(search(config_on(FREE_LUNCH), device)) == expected


def test_compiled_peaks_have_a_line_of_their_own():
    # By the eager static 16 GiB all of 8 examples' is static; by two peaks, half of it.
    device = Device(
        memory=40 * GIB,
        static=16 * GIB,
        per_example=2 * GIB,
        compiled_static=0.5,
        compiled_share=0.5,
    )
    assert story(search(config_on(FREE_LUNCH), device)) == "m1 m4 c8 c16"


def test_compiled_code_that_does_not_fit_is_given_up_in_few_steps():
    # 25.6 GiB, of which no peak without compilation tells.
    device = Device(memory=24 * GIB, static=16 * GIB, per_example=0.1 * GIB, compiled_static=1.6)
    told = story(search(config_on(FREE_LUNCH), device))
    assert told == "m1 m4 m16 c64! c32! c4! c1!"


@dataclass(kw_only=True)
class Walled(Device):
    """A device on which timings, or compiled ones, run out of memory from some size on."""

    wall: int
    compiled: bool

    def peak(self, probe: Probe) -> float:
        walled = probe.compile == self.compiled and probe.purpose is Purpose.TIMING
        return math.inf if walled and probe.micro_batch_size >= self.wall else super().peak(probe)


def test_a_timing_that_runs_out_is_followed_by_timings():
    device = Walled(wall=50, compiled=False)
    told = story(search(config_on(NAIVE, gpus=1, batch=768), device))
    assert told == "m1 m4 m32 t64! t32 t48"


class Leaner(Device):
    """A device on which a timing takes less than a memory probe, which runs out of it at 32."""

    def peak(self, probe: Probe) -> float:
        if probe.purpose is Purpose.MEMORY:
            return super().peak(probe) if probe.micro_batch_size < 32 else math.inf
        return 0.9 * super().peak(probe)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (1.0, "m1 m4 m16 c32 c128"),
        (1.15, "m1 m4 m16 c32 c128"),
        (1.45, "m1 m4 m16 c32 c64"),
    ],
)
def test_what_the_allocator_holds_has_to_fit(held, expected):
    # pythia-410m, checkpointing and FSDP2 (full), on two H100s (artifacts/results).
    hardware = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h100")
    device = Measured(
        memory=79.2 * GIB,
        eager={1: 4.4, 4: 8.1, 16: 23.2, 32: 43.4},
        compiled={32: 18.8, 64: 34.5, 128: 66.0},
        compiled_held=held,
    )
    config = dataclasses.replace(config_on(FREE_LUNCH), hardware=hardware)
    assert story(search(config, device)) == expected


def test_without_compilation_the_wall_of_the_ramp_stands():
    assert story(search(config_on(NAIVE), Leaner())) == "m1 m4 m32! m8 m16 t16 t8"


def test_compiled_code_that_runs_into_a_wall_is_timed_before_it_in_the_middle():
    device = Walled(compiled_share=0.25, wall=100, compiled=True)
    told = story(search(config_on(FREE_LUNCH, gpus=1, batch=768), device))
    assert told == "m1 m4 m32 c64 c256! c128! c96"


def test_on_a_cpu_the_resident_memory_says_nothing():
    hardware = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="cpu")
    config = dataclasses.replace(config_on(NAIVE), hardware=hardware)
    assert story(search(config, Device(per_example=0.01 * GIB))) == "t1"


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        # The last 48 examples took 10.3 GiB, and 32 more would take 6.9, of 6.3 that are left; all
        # 63 together less.
        ({1: 20.0, 4: 20.0, 16: 21.0, 64: 31.3, 48: 27.9}, "m1 m4 m16 m64 t64 t48"),
        # The last 4 took 4 GiB, and all 7 together 10.
        ({1: 5.0, 4: 11.0, 8: 15.0, 12: 21.0, 16: 27.5}, "m1 m4 m8 t16 t12"),
    ],
)
def test_the_steepest_line_counts(peaks, expected):
    device = Measured(memory=40 * GIB, eager=peaks)
    assert story(search(config_on(NAIVE, gpus=1, batch=768), device)) == expected


def test_where_the_smallest_fits_compiled_alone_its_peak_says_how_many_more_do():
    # 25 GiB eagerly, and 10.9 compiled, of which nobody knows how much is static.
    device = Device(memory=24 * GIB, per_example=21 * GIB, compiled_share=0.33)
    assert story(search(config_on(FREE_LUNCH), device)) == "m1! c1 c2"


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (23.55, "m1 m4 m16 m64 c256 c128"),
        (39.39, "m1 m4 m16 m64 m256 c512 c256"),
        (79.18, "m1 m4 m32 m512 c1024 c512"),
    ],
)
def test_what_hardly_grows_is_followed_until_it_does(memory, expected):
    # As vit with checkpointing: 5.0 GiB at 1 and at 4 (artifacts/results), where the old line went
    # on to 2,048 examples and out of memory.
    device = Device(
        memory=memory * GIB,
        static=4.9 * GIB,
        flat=5.0 * GIB,
        per_example=0.0365 * GIB,
        compiled_share=1.2,
    )
    assert story(search(config_on(FREE_LUNCH, gpus=1, batch=4096), device)) == expected


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        # By two peaks 64 fit; by the middle one 16 do, and 32 do not.
        ({1: 5.0, 4: 6.0, 8: 16.0, 16: 36.0}, "m1 m4 m32! m8 t16 t8"),
        # It still says that 32 fit.
        ({1: 5.0, 4: 6.0, 8: 7.0, 16: 9.0}, "m1 m4 m32! m8 m16 t16 t8"),
        ({1: 5.0, 4: 6.0, 8: 7.0}, "m1 m4 m32! m8 m16! t8 t4"),
        ({1: 5.0, 4: 6.0}, "m1 m4 m32! m8! t4 t2"),
    ],
)
def test_a_line_that_led_into_the_wall_is_mended_in_the_middle(peaks, expected):
    device = Measured(memory=40 * GIB, eager={2: 5.3} | peaks)
    assert story(search(config_on(NAIVE, gpus=1), device)) == expected


def a_device(memory: float, static: float, filled: float, flat: float, **rest) -> Device:
    """Build one that so many examples fill, beside a static share of it; memory is in GiB."""
    return Device(
        memory=memory * GIB,
        static=static * memory * GIB,
        per_example=(1 - static) * memory * GIB / filled,
        flat=flat * memory * GIB,
        **rest,
    )


# What is the same at all sizes, and at small ones, where it hides what grows.
statics = st.one_of(
    st.tuples(st.floats(0.01, 0.6), st.just(0.0)),
    st.floats(0.01, 0.3).flatmap(lambda low: st.tuples(st.just(low), st.floats(low, 1.3 * low))),
)
devices = st.builds(
    lambda statics, **rest: a_device(static=statics[0], flat=statics[1], **rest),
    memory=st.sampled_from([10.57, 15.77, 23.55, 39.39, 44.4, 79.18, 139.8]),
    statics=statics,
    filled=st.floats(0.0, 4.0).map(lambda power: 1.3 * 10**power),
    compiled_share=st.floats(0.3, 1.5),
    compiled_time=st.sampled_from([0.7, 0.9, 1.2]),
    launch_seconds=st.floats(0.001, 0.5),
)


def test_little_growth_on_a_straight_line_is_enough():
    # Most of what a step takes is the same at all sizes, and 256 examples fit with compilation.
    device = a_device(
        *(10.57, 0.5625, 130.0, 0.0), compiled_share=0.375, compiled_time=0.7, launch_seconds=0.5
    )
    history = search(config_on(FREE_LUNCH, batch=512), device)
    assert story(history) == "m1 m4 m16 c64 c256"


@settings(max_examples=300)
@given(
    device=devices,
    method=st.sampled_from([NAIVE, FREE_LUNCH, ZERO_3]),
    gpus=st.sampled_from([2, 3, 8]),
    batch=st.sampled_from([512, 1024, 8192, 3 * 2**8, 9 * 2**7]),
)
def test_the_largest_that_fits_is_found_with_few_walls(device, method, gpus, batch):
    config = config_on(method, gpus, batch, batch_tolerance=0.01)
    history = search(config, device)
    told = story(history).split()
    assert sum(probe[0] == "m" and probe[-1] == "!" for probe in told) <= 2, told
    assert sum(probe[0] != "m" and probe[-1] == "!" for probe in told) <= 2, told
    assert sum(probe[0] == "m" for probe in told) <= 8, told
    assert sum(probe[0] == "c" for probe in told) <= 4, told
    # A GPU gains with each example more.
    usable = [
        (plan.micro_batch_size, compiled)
        for plan in config.plans()
        for compiled in config.compile_choices
        if fits(config, device, plan.micro_batch_size, compiled=compiled)
    ]
    if sum(probe[0] == "m" and probe[-1] != "!" for probe in told) < 2:
        # Of one peak nobody knows what of compiled code's grows.
        usable = [v for v in usable if fits(config, device, v[0], compiled=False)]
    best = best_timing(config, history)
    if not usable:
        return
    assert best is not None, told
    largest, _ = min(usable, key=lambda variant: seconds(config, device, *variant))
    sizes = [plan.micro_batch_size for plan in config.plans()]
    next_to_it = sizes[max(0, sizes.index(largest) - 1)]
    assert best.probe.micro_batch_size >= next_to_it, told


def fits(config: TrainingConfig, device: Device, size: int, *, compiled: bool) -> bool:
    probe = Probe(
        purpose=Purpose.TIMING,
        micro_batch_size=size,
        high=2,
        high_steps=1,
        compile=compiled,
        deadline_seconds=1.0,
    )
    peak = device.peak(probe) + waiting_bytes(config, probe)
    return peak <= NORMAL.usable_memory * device.memory


def seconds(config: TrainingConfig, device: Device, size: int, compiled: bool) -> float:
    accumulation = config.plan_at(size).gradient_accumulation_steps
    return accumulation * device.micro_step_seconds(size, compiled=compiled)


@pytest.mark.parametrize(("static", "each"), [(57, 1.41), (60, 1.5)])
def test_of_states_that_take_most_a_third_peak_is_looked_at(static, each):
    device = Device(
        memory=80 * GIB,
        static=static * GIB,
        per_example=each * GIB,
        compiled_share=0.5,
    )
    told = story(search(config_on(FREE_LUNCH), device)).split()
    assert told[:3] == ["m1", "m4", "m8"]
    assert "c16" in told
