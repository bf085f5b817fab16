"""Settings that the validity rules forbid, on the command line and as data."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import InProcess, furnished

from academic_pretraining.config import BatchPlan, TrainingConfig, why_invalid
from academic_pretraining.errors import AcademicPretrainingError, InvalidConfigError
from academic_pretraining.gpus import GPUS, Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import ModelRecipe

many = settings(max_examples=150)
METHODS = [
    Method(
        free_lunch=free_lunch,
        activation_checkpointing=checkpointing,
        sharding=sharding,
        offloading=offloading,
    )
    for free_lunch, checkpointing, sharding, offloading in itertools.product(
        (False, True), (False, True), Sharding, (False, True)
    )
]
# Where the batch divides, so that the method or the GPU is to blame.
FORBIDDEN = [
    (hardware, model, method)
    for gpu_type, gpus in itertools.product(GPUS, (1, 2))
    for hardware in [Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type=gpu_type)]
    for model, method in itertools.product(MODELS, METHODS)
    if why_invalid(hardware, MODELS[model], method)
]
UNEQUAL = [
    (model, gpus)
    for model, gpus in itertools.product(MODELS, range(1, 300))
    if MODELS[model].global_batch_size % gpus
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> InProcess:
    return furnished(tmp_path_factory.mktemp("bad-plans"))


def hardware_flags(nodes: int, gpus: int, gpu_type: str, model: str) -> tuple[str, ...]:
    counts = ("--num-nodes", str(nodes), "--gpus-per-node", str(gpus))
    return (*counts, "--gpu-type", gpu_type, "--model", model)


def batch_flags(micro_batch: int, accumulation: int) -> tuple[str, ...]:
    return (
        "--micro-batch-size",
        str(micro_batch),
        "--gradient-accumulation-steps",
        str(accumulation),
    )


def exported(place: InProcess, *flags: str) -> str:
    return place.refuses("to_training_arguments.py", "--output", "new.json", *flags)


@many
@given(
    gpus=st.sampled_from([1, 2, 4, 8]),
    micro_batch=st.integers(1, 4096),
    accumulation=st.integers(1, 4096),
)
def test_a_plan_of_another_batch_is_refused(place, gpus, micro_batch, accumulation):
    accumulation += gpus * micro_batch * accumulation == 1024
    batch = gpus * micro_batch * accumulation
    flags = (
        *hardware_flags(1, gpus, "h200", "pythia-160m"),
        *batch_flags(micro_batch, accumulation),
    )
    assert f"is a global batch of {batch}, but pythia-160m trains with 1024" in exported(
        place, *flags
    )


@many
@given(
    gpus=st.sampled_from([1, 2, 3, 4, 5, 8]),
    micro_batch=st.integers(1, 64),
    tolerance=st.floats(0.01, 0.99),
)
def test_a_plan_beyond_the_tolerance_is_refused(place, gpus, micro_batch, tolerance):
    most = 1024 * (1 + tolerance)
    accumulation = math.floor(most / gpus / micro_batch) + 1
    flags = (
        *hardware_flags(1, gpus, "h200", "pythia-160m"),
        *batch_flags(micro_batch, accumulation),
    )
    assert "is a global batch of" in exported(place, *flags, "--batch-tolerance", str(tolerance))


@many
@given(chosen=st.sampled_from(FORBIDDEN), micro_batch=st.integers(1, 64))
def test_a_method_that_the_rules_forbid_is_refused(place, chosen, micro_batch):
    hardware, model, method = chosen
    switches = [
        f"--{name}"
        for name in ("free-lunch", "activation-checkpointing", "offloading")
        if getattr(method, name.replace("-", "_"))
    ]
    said = exported(
        place,
        *hardware_flags(1, hardware.gpus_per_node, hardware.gpu_type, model),
        *("--sharding", str(method.sharding), *switches, *batch_flags(micro_batch, 8)),
    )
    assert said == f"error: {'; '.join(why_invalid(hardware, MODELS[model], method))}\n"


@many
@given(
    chosen=st.sampled_from(UNEQUAL),
    nodes=st.booleans(),
    command=st.sampled_from(["run", "print-incomplete"]),
    methods=st.sampled_from(["naive", "free-lunch", "all"]),
)
def test_gpus_that_do_not_divide_the_batch_are_refused(place, chosen, nodes, command, methods):
    model, gpus = chosen
    counts = (gpus, 1) if nodes else (1, gpus)
    flags = hardware_flags(*counts, "h200", model)
    said = place.refuses("benchmark.py", *flags, "--cmd", command, "--methods", methods)
    batch = MODELS[model].global_batch_size
    assert "less than one example each" in said if gpus > batch else "does not divide over" in said


@many
@given(size=st.integers(1, 2000).filter(lambda size: 1024 % size), gpus=st.sampled_from([1, 2, 4]))
def test_micro_batches_that_do_not_divide_are_refused_whatever_is_asked(place, size, gpus):
    flags = hardware_flags(1, gpus, "a100", "pythia-160m")
    for command in ("run", "count", "dry-run", "print-incomplete", "print-results"):
        said = place.refuses(
            "benchmark.py", *flags, "--cmd", command, "--micro-batch-sizes", "1", str(size)
        )
        assert said.startswith(f"error: --micro-batch-sizes {size} does not divide ")


# What JSON can hold, and what only Python can.
junk = st.one_of(
    *(st.none(), st.text(max_size=5), st.lists(st.integers(), max_size=2), st.binary(max_size=3)),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
no_count = st.one_of(
    *(junk, st.integers(max_value=0), st.integers(10**16, 10**400), st.floats(), st.booleans())
)
no_share = st.one_of(
    junk.filter(lambda value: value is not None),
    st.floats(max_value=0, exclude_max=True),
    st.floats(min_value=1),
    st.just(math.nan),
)
required = no_count.filter(lambda value: value is not None)
NO_RECIPE: dict[str, st.SearchStrategy] = {
    **dict.fromkeys(("global_batch_size", "max_steps", "num_classes", "parameter_count"), no_count),
    **dict.fromkeys(("sequence_length", "image_size"), required),
    "warmup_steps": st.one_of(junk, st.integers(max_value=-1), st.floats()),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), no_share),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"),
        st.one_of(junk, st.floats(max_value=-1e-300), st.sampled_from([math.nan, math.inf])),
    ),
    **dict.fromkeys(("task", "precision"), st.one_of(junk, st.integers(), st.just("bf16"))),
    "name": st.one_of(st.none(), st.integers(), st.lists(st.text())),
    "architecture": st.one_of(st.none(), st.text(), st.integers(), st.lists(st.integers())),
}


def recipe_with(name: str, value: object) -> ModelRecipe:
    return dataclasses.replace(MODELS["pythia-160m"], **{name: value})  # pyright: ignore


@pytest.mark.parametrize("name", NO_RECIPE)
@settings(many, max_examples=20)
@given(data=st.data())
def test_a_recipe_that_cannot_be_trained_is_refused(name, data):
    with pytest.raises(InvalidConfigError, match=name):
        recipe_with(name, data.draw(NO_RECIPE[name]))


PARTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "num_nodes": (Hardware, {"num_nodes": 1, "gpus_per_node": 2, "gpu_type": "h200"}),
    "gpus_per_node": (Hardware, {"num_nodes": 1, "gpus_per_node": 2, "gpu_type": "h200"}),
    "gpu_type": (Hardware, {"num_nodes": 1, "gpus_per_node": 2, "gpu_type": "h200"}),
    **{
        name: (BatchPlan, dict.fromkeys(("world_size", *sizes), 1))
        for sizes in [("micro_batch_size", "gradient_accumulation_steps")]
        for name in ("world_size", *sizes)
    },
    **dict.fromkeys(("free_lunch", "activation_checkpointing", "offloading"), (Method, {})),
    "sharding": (Method, {}),
    "batch_tolerance": (
        TrainingConfig,
        {
            "hardware": Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200"),
            "recipe": MODELS["pythia-160m"],
            "method": Method(),
        },
    ),
}


@pytest.mark.parametrize("name", PARTS)
@settings(many, max_examples=20)
@given(data=st.data())
def test_a_part_of_a_setting_that_is_none_is_refused(name, data):
    kind, whole = PARTS[name]
    wrong = no_share if name == "batch_tolerance" else no_count
    if name == "gpu_type":
        # Hypothesis takes words from the code that is loaded.
        wrong = no_count.filter(lambda value: not isinstance(value, str) or value not in GPUS)
    if kind is Method:
        wrong = st.one_of(junk, st.integers(), st.floats(), st.just("zero_9"))
    with pytest.raises(AcademicPretrainingError):
        kind(**whole | {name: data.draw(wrong)})
