import dataclasses
import itertools

import pytest

from academic_pretraining.methods import Backend, Method, MethodSpace, Sharding, method_space

SHARDINGS = {
    "none": (None, 0, "-"),
    "zero_1": (Backend.DEEPSPEED, 1, "ZeRO-1"),
    "zero_2": (Backend.DEEPSPEED, 2, "ZeRO-2"),
    "zero_3": (Backend.DEEPSPEED, 3, "ZeRO-3"),
    "fsdp_shard_grad_op": (Backend.FSDP, 2, "FSDP2 (grad)"),
    "fsdp_full_shard": (Backend.FSDP, 3, "FSDP2 (full)"),
}


def test_the_shardings_are_the_papers():
    assert [sharding.value for sharding in Sharding] == list(SHARDINGS)


@pytest.mark.parametrize(("value", "expected"), SHARDINGS.items())
def test_a_sharding_has_backend_stage_and_label(value, expected):
    sharding = Sharding(value)
    assert (sharding.backend, sharding.stage, sharding.label) == expected


def test_labels_tell_shardings_apart():
    assert len({sharding.label for sharding in Sharding}) == len(Sharding)


@pytest.mark.parametrize(
    ("method", "label"),
    [
        (Method(), "naive"),
        (Method(free_lunch=True), "free-lunch"),
        (Method(activation_checkpointing=True), "checkpointing"),
        (Method(sharding=Sharding.FSDP_FULL_SHARD), "FSDP2 (full)"),
        (
            Method(free_lunch=True, activation_checkpointing=True, sharding=Sharding.ZERO_2),
            "free-lunch + checkpointing + ZeRO-2",
        ),
        (
            Method(
                free_lunch=True,
                activation_checkpointing=True,
                sharding=Sharding.FSDP_SHARD_GRAD_OP,
                offloading=True,
            ),
            "free-lunch + checkpointing + FSDP2 (grad) + offloading",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_methods_label(method, label):
    assert method.label == label


def test_a_method_is_a_value():
    assert {Method(free_lunch=True), Method(free_lunch=True)} == {Method(free_lunch=True)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        Method().free_lunch = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        Method(True)  # pyright: ignore[reportCallIssue]


def test_the_spaces_are_called_as_on_the_command_line():
    assert [space.value for space in MethodSpace] == ["naive", "free-lunch", "all"]


def test_the_small_spaces_hold_one_method():
    assert list(method_space(MethodSpace.NAIVE)) == [Method()]
    assert list(method_space(MethodSpace.FREE_LUNCH)) == [Method(free_lunch=True)]


def test_the_whole_space_is_naive_and_every_combination_with_free_lunch():
    methods = list(method_space(MethodSpace.ALL))
    combinations = {
        Method(free_lunch=True, activation_checkpointing=c, sharding=s, offloading=o)
        for c, s, o in itertools.product((False, True), Sharding, (False, True))
    }
    assert len(methods) == 25
    assert methods[:2] == [Method(), Method(free_lunch=True)]
    assert set(methods[1:]) == combinations


def test_labels_tell_the_methods_of_a_grid_apart():
    methods = list(method_space(MethodSpace.ALL))
    assert len({method.label for method in methods}) == len(methods)


def test_sharding_grows_along_the_grid():
    stages = [list(Sharding).index(m.sharding) for m in method_space(MethodSpace.ALL)]
    assert stages == sorted(stages)
