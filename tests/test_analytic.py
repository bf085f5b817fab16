import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from academic_pretraining.analytic import SECONDS_PER_DAY, lower_bound_days, mfu, peak_flops
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import GPUS, Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import MODELS

NAIVE, FREE_LUNCH = Method(), Method(free_lunch=True)


def config_of(model: str, gpu_type: str, method: Method = NAIVE, gpus: int = 1) -> TrainingConfig:
    return TrainingConfig(
        hardware=Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type=gpu_type),
        recipe=MODELS[model],
        method=method,
    )


@pytest.mark.parametrize(
    ("model", "gpu_type", "method", "tera"),
    [
        ("pythia-160m", "h200", NAIVE, 989),
        ("pythia-160m", "h200", FREE_LUNCH, 989),
        ("pythia-1b", "a100", NAIVE, 312),
        ("vit", "h200", NAIVE, 67),
        ("vit", "h200", FREE_LUNCH, 494.5),
        ("vit", "v100", FREE_LUNCH, 15.7),
        ("roberta", "v100", FREE_LUNCH, 125),
        ("convnext-large-1k", "h100-pcie", FREE_LUNCH, 378),
    ],
)
def test_the_peak_is_that_of_the_trainings_arithmetic(model, gpu_type, method, tera):
    assert peak_flops(config_of(model, gpu_type, method)) == pytest.approx(tera * 1e12)


def test_the_peak_is_of_one_gpu():
    assert peak_flops(config_of("vit", "h200", gpus=8)) == GPUS["h200"].fp32_flops


def test_a_cpu_has_no_datasheet():
    config = config_of("pythia-14m", "cpu")
    plan = config.plan(1, 1024)
    assert peak_flops(config) is None
    assert mfu(config, plan, model_flops_per_example=1e12, step_seconds=1.0) is None
    assert lower_bound_days(config, model_flops_per_example=1e12) is None


def test_utilisation_by_hand():
    config = config_of("pythia-160m", "h200", gpus=4)
    # 1,024 examples x 2 PFLOP in 2 s on 4 x 989 TFLOP/s.
    found = mfu(config, config.plan(16, 16), model_flops_per_example=2e12, step_seconds=2.0)
    assert found == pytest.approx(1024 * 2e12 / 2.0 / (4 * 989e12))


def test_utilisation_counts_the_batch_that_ran():
    config = dataclasses.replace(config_of("mamba", "h200"), batch_tolerance=0.1)
    small, large = config.plan(1, 120), config.plan(1, 128)
    flops = {"model_flops_per_example": 1e13, "step_seconds": 3.0}
    ratio = (mfu(config, small, **flops) or 0) / (mfu(config, large, **flops) or 1)
    assert ratio == pytest.approx(120 / 128)


def test_the_lower_bound_by_hand():
    days = lower_bound_days(config_of("pythia-160m", "h200", gpus=2), model_flops_per_example=1e12)
    assert days == pytest.approx(1e12 * 1024 * 143_000 / (2 * 989e12 * 86_400))


@given(
    model=st.sampled_from(sorted(MODELS)),
    gpu_type=st.sampled_from(["a100", "h200", "geforce3090"]),
    gpus=st.sampled_from([1, 2, 4, 8]),
    free_lunch=st.booleans(),
    flops=st.floats(1e9, 1e16),
    seconds=st.floats(1e-3, 1e5),
)
def test_the_lower_bound_is_the_time_at_full_utilisation(
    model, gpu_type, gpus, free_lunch, flops, seconds
):
    config = config_of(model, gpu_type, Method(free_lunch=free_lunch), gpus)
    plan = config.plans()[-1]
    used = mfu(config, plan, model_flops_per_example=flops, step_seconds=seconds)
    bound = lower_bound_days(config, model_flops_per_example=flops)
    assert used is not None
    assert bound is not None
    days = seconds * config.recipe.max_steps / SECONDS_PER_DAY
    assert bound == pytest.approx(days * used)


@pytest.mark.parametrize("gpu_type", [name for name in GPUS if name != "cpu"])
def test_every_card_has_a_bound(gpu_type):
    days = lower_bound_days(config_of("vit", gpu_type, FREE_LUNCH), model_flops_per_example=1e12)
    assert days is not None
    assert days > 0
