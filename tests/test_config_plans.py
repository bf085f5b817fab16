"""How `academic_pretraining.config` divides a batch, and writes a configuration down."""

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from academic_pretraining.config import (
    BatchPlan,
    TrainingConfig,
    config_from_dict,
    config_to_dict,
    grid,
    why_invalid,
)
from academic_pretraining.errors import InvalidConfigError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, MethodSpace, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import ModelRecipe, Precision, Task

PYTHIA = MODELS["pythia-160m"]


def hardware(gpus: int, num_nodes: int = 1) -> Hardware:
    return Hardware(num_nodes=num_nodes, gpus_per_node=gpus, gpu_type="h200")


def config_of(gpus: int, recipe: ModelRecipe = PYTHIA, tolerance: float = 0.0) -> TrainingConfig:
    return TrainingConfig(
        hardware=hardware(gpus), recipe=recipe, method=Method(), batch_tolerance=tolerance
    )


def divisions(config: TrainingConfig) -> dict[int, int]:
    """Give accumulation by micro-batch size."""
    return {p.micro_batch_size: p.gradient_accumulation_steps for p in config.plans()}


def powers(largest: int) -> dict[int, int]:
    return {2**i: largest // 2**i for i in range(largest.bit_length())}


@pytest.mark.parametrize(("gpus", "each"), [(1, 1024), (2, 512), (4, 256), (8, 128)])
def test_plans_of_a_dividing_number_of_gpus(gpus, each):
    assert divisions(config_of(gpus)) == powers(each)


@pytest.mark.parametrize(
    ("gpus", "tolerance", "expected"),
    [
        (3, 0.001, {1: 341, 11: 31, 31: 11, 341: 1}),
        (7, 0.002, {1: 146, 2: 73, 73: 2, 146: 1}),
        (5, 0.001, {1: 205, 5: 41, 41: 5, 205: 1}),
        (6, 0.002, {1: 171, 3: 57, 9: 19, 19: 9, 57: 3, 171: 1}),
    ],
)
def test_plans_within_a_tolerance(gpus, tolerance, expected):
    assert divisions(config_of(gpus, tolerance=tolerance)) == expected


@pytest.mark.parametrize("tolerance", [0.001, 0.004, 0.2, 0.999])
@pytest.mark.parametrize(("gpus", "each"), [(1, 1024), (4, 256)])
def test_where_the_batch_divides_a_tolerance_changes_no_plan(gpus, each, tolerance):
    config = config_of(gpus, tolerance=tolerance)
    assert divisions(config) == powers(each)
    assert config.global_batch_size == 1024


@pytest.mark.parametrize(
    ("gpus", "tolerance", "batch"),
    [
        (1, 0.0, 1024),
        (3, 0.001, 1023),
        (3, 0.5, 1023),
        (5, 0.001, 1025),
        (7, 0.002, 1022),
        (6, 0.002, 1026),
    ],
)
def test_the_batch_is_the_nearest_that_the_gpus_can_share(gpus, tolerance, batch):
    config = config_of(gpus, tolerance=tolerance)
    assert config.global_batch_size == batch
    assert {plan.global_batch_size for plan in config.plans()} == {batch}


def test_plans_of_the_smallest_share():
    mamba = MODELS["mamba"]
    config = TrainingConfig(hardware=hardware(8, num_nodes=16), recipe=mamba, method=Method())
    assert config.plans() == (
        BatchPlan(world_size=128, micro_batch_size=1, gradient_accumulation_steps=1),
    )


@given(
    batch=st.integers(1, 3000),
    gpus=st.integers(1, 8),
    num_nodes=st.integers(1, 3),
    tolerance=st.just(0.0) | st.floats(0.0, 0.2),
)
def test_every_plan_keeps_to_the_batch(batch, gpus, num_nodes, tolerance):
    machine = hardware(gpus, num_nodes)
    recipe = dataclasses.replace(PYTHIA, global_batch_size=batch)
    world = machine.world_size
    if why_invalid(machine, recipe, Method(), batch_tolerance=tolerance):
        # Then no micro-batch of one will do either, which leaves the accumulation free.
        nearest = max(1, round(batch / world))
        assert world > batch or abs(world * nearest - batch) > tolerance * batch
        return
    config = TrainingConfig(
        hardware=machine, recipe=recipe, method=Method(), batch_tolerance=tolerance
    )
    plans = config.plans()
    sizes = [plan.micro_batch_size for plan in plans]
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    for plan in plans:
        assert plan.world_size == world
        size, steps = plan.micro_batch_size, plan.gradient_accumulation_steps
        assert plan.global_batch_size == world * size * steps
        departure = abs(plan.global_batch_size - batch)
        assert departure <= tolerance * batch
        assert plan.global_batch_size == config.global_batch_size
        assert all(departure <= abs(world * n - batch) for n in range(1, batch // world + 2))
        assert config.plan(size, steps) == config.plan_at(size) == plan
    each = config.global_batch_size // world
    assert sizes == [size for size in range(1, each + 1) if each % size == 0]
    if tolerance == 0:
        assert config.global_batch_size == batch


@pytest.mark.parametrize("model", MODELS)
def test_the_tolerance_that_an_error_proposes_is_enough(model):
    recipe, refused = MODELS[model], 0
    for gpus in range(1, 129):
        for reason in why_invalid(hardware(gpus), recipe, Method()):
            proposed = re.search(r"--batch-tolerance ([\d.]+)", reason)
            assert proposed is not None
            tolerance = float(proposed[1])
            assert why_invalid(hardware(gpus), recipe, Method(), batch_tolerance=tolerance) == ()
            refused += 1
    assert refused > 100


@given(batch=st.integers(1, 3000), gpus=st.integers(1, 8), num_nodes=st.integers(1, 40))
def test_the_tolerance_that_an_error_proposes_is_always_accepted(batch, gpus, num_nodes):
    machine = hardware(gpus, num_nodes)
    recipe = dataclasses.replace(PYTHIA, global_batch_size=batch)
    for reason in why_invalid(machine, recipe, Method()):
        if proposed := re.search(r"--batch-tolerance ([\d.e-]+)", reason):
            tolerance = float(proposed[1])
            assert why_invalid(machine, recipe, Method(), batch_tolerance=tolerance) == ()
        else:
            assert machine.world_size > batch


@pytest.mark.parametrize("size", [0, -1, -1024])
def test_there_is_no_plan_for_less_than_one_example(size):
    with pytest.raises(InvalidConfigError) as caught:
        config_of(2).plan_at(size)
    assert str(caught.value) == (
        f"micro_batch_size is {size}, but must be at least 1: give a positive number"
    )


@pytest.mark.parametrize(
    ("micro_batch_size", "steps", "product"), [(16, 16, 512), (1024, 1, 2048), (3, 171, 1026)]
)
def test_a_product_that_is_not_the_batch_is_refused(micro_batch_size, steps, product):
    with pytest.raises(InvalidConfigError) as caught:
        config_of(2).plan(micro_batch_size, steps)
    assert str(caught.value) == (
        f"2 GPUs x micro-batch {micro_batch_size} x {steps} accumulation steps is a global batch "
        f"of {product}, but pythia-160m trains with 1024: choose a micro-batch size among 1, 2, 4, "
        "8, 16, 32, 64, 128, 256, 512 and accumulation steps to match, or allow a difference with "
        "--batch-tolerance"
    )


def test_a_long_list_of_sizes_is_cut():
    with pytest.raises(InvalidConfigError) as caught:
        config_of(2, MODELS["roberta"]).plan(7, 1)
    assert "among 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, ... and" in str(caught.value)


@pytest.mark.parametrize(("size", "steps"), [(3, 171), (2048, 1), (1000, 1)])
def test_a_size_that_never_makes_the_batch_is_refused(size, steps):
    with pytest.raises(InvalidConfigError) as caught:
        config_of(2).plan_at(size)
    assert str(caught.value).startswith(f"2 GPUs x micro-batch {size} x {steps} accumulation ")


def test_a_tolerance_admits_what_is_refused_without():
    assert config_of(2, tolerance=0.01).plan(3, 171).global_batch_size == 1026
    assert config_of(2, tolerance=0.01).plan_at(3).gradient_accumulation_steps == 171


@pytest.mark.parametrize("name", ["world_size", "micro_batch_size", "gradient_accumulation_steps"])
@pytest.mark.parametrize("number", [0, -4])
def test_a_plan_of_nothing_is_refused(name, number):
    numbers = {"world_size": 1, "micro_batch_size": 1, "gradient_accumulation_steps": 1}
    with pytest.raises(InvalidConfigError) as caught:
        BatchPlan(**{**numbers, name: number})
    assert str(caught.value) == (
        f"{name} is {number}, but must be at least 1: give a positive number"
    )


def test_a_users_plan_of_nothing_is_refused_alike():
    with pytest.raises(InvalidConfigError, match=r"^micro_batch_size is 0, but must be at least 1"):
        config_of(1).plan(0, 1)
    with pytest.raises(
        InvalidConfigError, match=r"^micro_batch_size is -8, but must be at least 1"
    ):
        config_of(1).plan_at(-8)


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_a_written_configuration_is_read_back(model, gpus):
    for method, reasons in grid(hardware(gpus), MODELS[model], MethodSpace.ALL):
        if reasons:
            continue
        config = TrainingConfig(
            hardware=hardware(gpus), recipe=MODELS[model], method=method, batch_tolerance=0.125
        )
        written = config_to_dict(config)
        back = config_from_dict(json.loads(json.dumps(written)))
        assert back == config
        assert config_to_dict(back) == written
        assert type(back.recipe.precision) is Precision
        assert type(back.recipe.task) is Task
        assert type(back.method.sharding) is Sharding


def test_each_fields_value_is_written():
    written = config_to_dict(config_of(2))
    assert set(written) == {"hardware", "recipe", "method", "batch_tolerance"}
    for part, kind in (("hardware", Hardware), ("recipe", ModelRecipe), ("method", Method)):
        assert set(written[part]) == {field.name for field in dataclasses.fields(kind)}


def test_what_was_written_by_hand_must_be_valid_too():
    written = config_to_dict(config_of(2))
    written["hardware"]["gpus_per_node"] = 3
    with pytest.raises(InvalidConfigError, match=r"^a global batch of 1024 does not divide over 3"):
        config_from_dict(written)
