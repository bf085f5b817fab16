import dataclasses

import pytest

from academic_pretraining.config import TrainingConfig, grid, why_invalid
from academic_pretraining.errors import InvalidConfigError
from academic_pretraining.gpus import GPUS, Hardware
from academic_pretraining.methods import Method, MethodSpace, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import ModelRecipe, Precision

PYTHIA = MODELS["pythia-160m"]
SHARDED = [sharding for sharding in Sharding if sharding is not Sharding.NONE]
FREE_LUNCH = Method(free_lunch=True)


def hardware(gpus_per_node: int = 1, gpu_type: str = "h200", num_nodes: int = 1) -> Hardware:
    return Hardware(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu_type=gpu_type)


def config_of(model: str = "pythia-160m", method: Method = FREE_LUNCH, **machine) -> TrainingConfig:
    return TrainingConfig(hardware=hardware(**machine), recipe=MODELS[model], method=method)


def with_batch(size: int) -> ModelRecipe:
    return dataclasses.replace(PYTHIA, global_batch_size=size)


# Hardware, recipe, method, batch tolerance, reason.
RULES = {
    "offloading alone": (
        hardware(2),
        PYTHIA,
        Method(offloading=True),
        0.0,
        "offloading needs sharding, which decides what is offloaded: choose a sharding method",
    ),
    **{
        f"{sharding} on 1 GPU": (
            hardware(),
            PYTHIA,
            Method(sharding=sharding),
            0.0,
            f"{sharding.label} on 1 GPU divides nothing: use more GPUs or add offloading",
        )
        for sharding in SHARDED
    },
    "offloading on a cpu": (
        hardware(2, "cpu"),
        PYTHIA,
        Method(sharding=Sharding.ZERO_1, offloading=True),
        0.0,
        "offloading on a cpu has nowhere to go: leave it out",
    ),
    "no checkpointing": (
        hardware(),
        dataclasses.replace(PYTHIA, supports_activation_checkpointing=False),
        Method(activation_checkpointing=True),
        0.0,
        "pythia-160m does not support activation checkpointing: leave it out",
    ),
    "bf16": (
        hardware(1, "v100"),
        MODELS["mamba"],
        Method(),
        0.0,
        "mamba trains in bf16, which v100 lacks: use an Ampere GPU or newer",
    ),
    **{
        f"tolerance {tolerance}": (
            hardware(),
            PYTHIA,
            Method(),
            tolerance,
            f"batch tolerance is {tolerance}, but must be at least 0 and below 1: 0.01 allows 1%",
        )
        for tolerance in (-0.01, 1.0, 7.5, float("inf"), float("nan"))
    },
    "too many GPUs": (
        hardware(8, num_nodes=17),
        MODELS["mamba"],
        Method(),
        0.0,
        "136 GPUs share a global batch of 128, less than one example each: use at most 128 GPUs",
    ),
    "indivisible": (
        hardware(6),
        PYTHIA,
        Method(),
        0.001,
        "a global batch of 1024 does not divide over 6 GPUs: the nearest that does is 1026; allow "
        "it with --batch-tolerance 0.002, or use a number of GPUs that divides 1024",
    ),
    "indivisible from above": (
        hardware(3),
        PYTHIA,
        Method(),
        0.0,
        "a global batch of 1024 does not divide over 3 GPUs: the nearest that does is 1023; allow "
        "it with --batch-tolerance 0.001, or use a number of GPUs that divides 1024",
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_a_broken_rule_is_the_only_reason_and_the_errors_text(case):
    machine, recipe, method, tolerance, reason = RULES[case]
    assert why_invalid(machine, recipe, method, batch_tolerance=tolerance) == (reason,)
    with pytest.raises(InvalidConfigError) as caught:
        TrainingConfig(hardware=machine, recipe=recipe, method=method, batch_tolerance=tolerance)
    assert str(caught.value) == reason


def test_all_broken_rules_are_told_at_once():
    recipe = dataclasses.replace(MODELS["mamba"], supports_activation_checkpointing=False)
    method = Method(offloading=True, activation_checkpointing=True)
    reasons = (
        "offloading needs sharding, which decides what is offloaded: choose a sharding method",
        "mamba does not support activation checkpointing: leave it out",
        "mamba trains in bf16, which v100 lacks: use an Ampere GPU or newer",
        "a global batch of 128 does not divide over 3 GPUs: the nearest that does is 129; allow it "
        "with --batch-tolerance 0.008, or use a number of GPUs that divides 128",
    )
    with pytest.raises(InvalidConfigError) as caught:
        TrainingConfig(hardware=hardware(3, "v100"), recipe=recipe, method=method)
    assert caught.value.reasons == reasons
    assert str(caught.value) == "; ".join(reasons)


@pytest.mark.parametrize("sharding", SHARDED)
def test_one_gpu_may_shard_what_it_offloads(sharding):
    assert why_invalid(hardware(), PYTHIA, Method(sharding=sharding, offloading=True)) == ()


def test_one_gpu_on_each_of_two_machines_may_shard():
    assert why_invalid(hardware(num_nodes=2), PYTHIA, Method(sharding=Sharding.ZERO_3)) == ()


def test_a_cpu_and_an_ampere_card_take_a_bf16_recipe():
    assert why_invalid(hardware(gpu_type="cpu"), MODELS["mamba"], Method()) == ()
    assert why_invalid(hardware(gpu_type="geforce3090"), MODELS["mamba"], Method()) == ()


def test_a_v100_takes_fp16_and_fp32():
    for model in ("pythia-160m", "vit"):
        assert why_invalid(hardware(gpu_type="v100"), MODELS[model], Method()) == ()


def test_no_tolerance_is_below_one_and_the_largest_is():
    assert why_invalid(hardware(3), PYTHIA, Method(), batch_tolerance=0.999) == ()
    # On the boundary: 3 x 341 is 1/1024 away.
    assert why_invalid(hardware(3), PYTHIA, Method(), batch_tolerance=1 / 1024) == ()
    assert why_invalid(hardware(3), PYTHIA, Method(), batch_tolerance=0.99 / 1024) != ()


def valid_in(space: MethodSpace, machine: Hardware, recipe: ModelRecipe, **tolerance) -> int:
    return sum(not reasons for _, reasons in grid(machine, recipe, space, **tolerance))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("gpus", "count"), [(1, 13), (2, 23), (4, 23), (8, 23)])
def test_the_grid_has_the_papers_size(model, gpus, count):
    recipe = MODELS[model]
    assert valid_in(MethodSpace.ALL, hardware(gpus), recipe) == count
    assert valid_in(MethodSpace.NAIVE, hardware(gpus), recipe) == 1
    assert valid_in(MethodSpace.FREE_LUNCH, hardware(gpus), recipe) == 1


def test_the_papers_sweep_has_its_size():
    models = ["roberta", "mamba", "convnext-xlarge-22k", "vit"]
    models += [f"pythia-{size}" for size in ("160m", "410m", "1b", "2.8b", "6.9b")]
    settings = sum(
        valid_in(MethodSpace.ALL, hardware(gpus, gpu_type), MODELS[model])
        for gpus in (1, 2, 4, 8)
        for gpu_type in ("geforce3090", "a6000", "a100", "h100")
        for model in models
    )
    assert settings == 2952


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gpus", [3, 5, 6, 7])
def test_other_numbers_of_gpus_need_a_tolerance(model, gpus):
    machine, recipe = hardware(gpus), MODELS[model]
    assert valid_in(MethodSpace.ALL, machine, recipe) == 0
    assert valid_in(MethodSpace.ALL, machine, recipe, batch_tolerance=0.02) == 23


@pytest.mark.parametrize(("gpus", "count"), [(1, 3), (2, 13)])
def test_a_cpu_leaves_offloading_out(gpus, count):
    assert valid_in(MethodSpace.ALL, hardware(gpus, "cpu"), MODELS["pythia-14m"]) == count


def test_the_grid_gives_the_reasons_with_the_method():
    skipped = {method: why for method, why in grid(hardware(), PYTHIA, MethodSpace.ALL) if why}
    sharded = Method(free_lunch=True, sharding=Sharding.ZERO_2)
    assert skipped[sharded] == why_invalid(hardware(), PYTHIA, sharded)
    assert len(skipped) == 12


@pytest.mark.parametrize("model", MODELS)
def test_the_recipes_precision_holds_on_a_gpu_and_fp32_on_a_cpu(model):
    assert config_of(model).precision is MODELS[model].precision
    assert config_of(model, gpu_type="cpu").precision is Precision.FP32


@pytest.mark.parametrize("model", MODELS)
def test_free_lunch_compiles_all_but_mamba(model):
    assert config_of(model).compiles is (model != "mamba")
    assert config_of(model, Method(activation_checkpointing=True)).compiles is False


@pytest.mark.parametrize("sharding", Sharding)
def test_only_under_zero_3_is_it_tried_whether_compilation_pays(sharding):
    both = (False, True)
    method = Method(free_lunch=True, sharding=sharding)
    choices = both if sharding is Sharding.ZERO_3 else (True,)
    assert config_of("vit", method, gpus_per_node=2).compile_choices == choices
    assert config_of("mamba", method, gpus_per_node=2).compile_choices == (False,)
    eager = Method(sharding=sharding)
    assert config_of("vit", eager, gpus_per_node=2).compile_choices == (False,)


@pytest.mark.parametrize("gpu_type", GPUS)
def test_free_lunch_allows_tf32_where_there_is_some(gpu_type):
    assert config_of("vit", gpu_type=gpu_type).tf32 is (
        gpu_type not in ("v100", "v100-pcie", "cpu")
    )
    assert config_of("vit", Method(), gpu_type=gpu_type).tf32 is False


@pytest.mark.parametrize("model", MODELS)
def test_attention_is_eager_without_free_lunch(model):
    family = model.partition("-")[0]
    expected = {"pythia": "sdpa", "vit": "sdpa", "roberta": "eager"}
    assert config_of(model).attention == expected.get(family)
    assert config_of(model, Method()).attention == ("eager" if family in expected else None)


def test_labels_name_several_machines():
    method = Method(free_lunch=True, sharding=Sharding.ZERO_2)
    assert config_of(method=method, gpus_per_node=2).label == (
        "pythia-160m on 2 x h200: free-lunch + ZeRO-2"
    )
    assert config_of("vit", Method(), gpus_per_node=4, gpu_type="a100", num_nodes=2).label == (
        "vit on 2 nodes x 4 x a100: naive"
    )
