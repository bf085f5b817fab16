"""Every method against plain data parallelism, on two CPUs.

One seed, one global batch, three steps; in fp32, and one model in bf16. tests/gpu does the same on
two GPUs.
"""

from pathlib import Path

import pytest
from contract.mathematics import (
    STEPS,
    Case,
    Computed,
    asked_for,
    assert_begun_alike,
    assert_label_fits_types,
    assert_within,
    distance,
    read,
    tolerance,
    write_cases,
)
from contract.ranks import run_ranks

from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models.recipe import Precision

pytestmark = pytest.mark.slow

FAMILIES = ("pythia-160m", "roberta", "vit", "convnext-large-1k", "mamba")
EVERY_METHOD = [
    Case(model=model, method=Method(sharding=sharding, activation_checkpointing=checkpointing))
    for model in FAMILIES
    for sharding in Sharding
    for checkpointing in (False, True)
]
ACCUMULATION = [
    Case(model=model, method=Method(sharding=sharding), plan=plan)
    for model in FAMILIES
    for sharding in (Sharding.NONE, Sharding.ZERO_2, Sharding.FSDP_FULL_SHARD)
    if sharding is Sharding.NONE or model == "pythia-160m"
    for plan in ((4, 1), (1, 4))
]
COMPILED = [
    Case(model="pythia-160m", method=Method(free_lunch=True, sharding=sharding))
    for sharding in (Sharding.NONE, Sharding.ZERO_1, Sharding.ZERO_3, Sharding.FSDP_FULL_SHARD)
] + [
    # Whose layers differ in size.
    Case(model="convnext-large-1k", method=Method(free_lunch=True, sharding=sharding))
    for sharding in (Sharding.ZERO_3, Sharding.FSDP_FULL_SHARD)
]
# Its layers are compiled for themselves, and recomputed.
COMPILED_APART = Method(
    free_lunch=True, sharding=Sharding.FSDP_FULL_SHARD, activation_checkpointing=True
)
COMPILED.append(Case(model="pythia-160m", method=COMPILED_APART))
IN_FP32 = EVERY_METHOD + ACCUMULATION + COMPILED
# accelerate refuses fp16 on a CPU.
IN_BF16 = [
    Case(model="pythia-1b", precision=Precision.BF16, method=Method(sharding=sharding), plan=plan)
    for sharding in Sharding
    for plan in ((2, 2), (1, 4))
]


def is_thorough(case: Case) -> bool:
    """Whether others check the same: one like it is compiled, or another model checkpointed."""
    sharding = case.method.sharding
    if case.method.free_lunch:
        return sharding is Sharding.ZERO_3 or case.model != "pythia-160m"
    repeated = case.method.activation_checkpointing and case.model != "pythia-160m"
    return repeated and sharding not in (Sharding.NONE, Sharding.FSDP_FULL_SHARD)


@pytest.fixture(scope="module")
def in_fp32(request, tmp_path_factory) -> Path:
    """Train the cases that tests ask for, and those that they are compared with."""
    needed = {c for case in asked_for(request, "pair", Case) for c in (case, case.plain)}
    folder = tmp_path_factory.mktemp("mathematics")
    write_cases(folder, [case for case in IN_FP32 if case in needed], "cpu")
    run_ranks("compute.py", folder)
    return folder


@pytest.fixture(scope="module")
def in_bf16(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mathematics")
    write_cases(folder, [IN_BF16[0].start, *IN_BF16], "a100", use_cpu=True)
    run_ranks("compute.py", folder)
    return folder


@pytest.fixture(
    params=[
        pytest.param(case, marks=[pytest.mark.thorough] * is_thorough(case))
        for case in IN_FP32
        if case != case.start
    ],
    ids=lambda case: case.name,
)
def pair(request, in_fp32) -> tuple[Computed, Computed]:
    """What a case computed, and what plain data parallelism did."""
    return read(in_fp32, request.param), read(in_fp32, request.param.plain)


def test_losses_and_gradients_agree(pair):
    mine, plain = pair
    assert len(mine.losses) == len(plain.losses) == STEPS
    apart = distance(mine, plain)
    # The first step's differ by the order of fp32 sums alone; after that Adam divides gradients
    # near zero by their own size, which enlarges a last digit.
    assert apart.loss[0] < 1e-5
    assert apart.gradient_norm[0] < 1e-4
    assert max(apart.loss) < 1e-3
    assert max(apart.gradient_norm) < 1e-2


def test_the_same_weights_are_reached_from_the_same_weights(pair):
    mine, plain = pair
    assert_begun_alike(mine, plain)
    # Of the way that the weights went in three steps.
    assert distance(mine, plain).parameters < 0.02


@pytest.mark.parametrize("case", IN_BF16, ids=lambda case: case.name)
def test_bf16_stays_within_its_rounding_of_plain_training_and_of_fp32(case, in_bf16):
    mine = read(in_bf16, case)
    assert_begun_alike(mine, read(in_bf16, case.start))
    assert_label_fits_types(case, mine)
    for other in {case.plain, case.start} - {case}:
        assert_within(distance(mine, read(in_bf16, other)), tolerance(case))
