import dataclasses

import pytest
from one_rank import found_on_one_rank
from trained import (
    EVERY,
    FSDP_FULL,
    FSDP_GRAD,
    ZERO_1,
    ZERO_2,
    every_method,
    train_in_this_process,
)
from transformers import Trainer

from academic_pretraining.benchmarking.build import build_model
from academic_pretraining.benchmarking.in_force import check_in_force
from academic_pretraining.errors import MeasurementError
from academic_pretraining.methods import Backend, Method, Sharding


def verdicts_of(session) -> dict[str, str]:
    first, second = (facts["verdicts"] for facts in session.facts)
    assert first == second
    return first


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("asked", Sharding)
def test_only_the_sharding_that_trained_is_accepted(recorded, method, asked):
    verdict = verdicts_of(recorded(method))[f"sharding {asked}"]
    assert (verdict == "") == (asked is method.sharding)
    if asked.backend is not method.sharding.backend:
        expected = f"sharding backend is {method.sharding.backend} instead of {asked.backend}"
        assert expected in verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "asked", "expected"),
    [
        (ZERO_1, Sharding.ZERO_2, "ZeRO stage is 1 instead of 2"),
        (
            ZERO_1,
            Sharding.ZERO_3,
            "ZeRO stage is 1 instead of 3; modules gathered whole is None instead of GPTNeoXLayer",
        ),
        (ZERO_2, Sharding.ZERO_1, "ZeRO stage is 2 instead of 1"),
        (
            FSDP_GRAD,
            Sharding.FSDP_FULL_SHARD,
            "reshard after forward is False instead of True",
        ),
        (
            FSDP_FULL,
            Sharding.FSDP_SHARD_GRAD_OP,
            "reshard after forward is True instead of False",
        ),
    ],
)
def test_the_stage_that_differs_is_all_that_is_named(recorded, method, asked, expected):
    assert verdicts_of(recorded(method))[f"sharding {asked}"] == expected


@pytest.mark.slow
@every_method
def test_other_layers_that_are_gathered_whole_are_refused(recorded, method):
    verdict = verdicts_of(recorded(method))["layers"]
    if method.sharding is Sharding.ZERO_3:
        assert verdict == "modules gathered whole is GPTNeoXLayer instead of GPTNeoXMLP"
    elif method.sharding.backend is Backend.FSDP:
        assert "layers sharded as a part of others is all instead of 0" in verdict
    else:
        assert verdict == ""


@pytest.mark.slow
@every_method
def test_layers_that_are_not_gathered_whole_are_refused(recorded, method):
    verdicts = verdicts_of(recorded(method))
    assert verdicts["layers in parts"] == (
        "modules gathered whole is None instead of GPTNeoXLayer"
        if method.sharding is Sharding.ZERO_3
        else ""
    )
    assert verdicts["layers whole"] == ""


@pytest.mark.slow
@every_method
def test_another_compilation_is_refused(recorded, method):
    found = method.free_lunch
    verdict = verdicts_of(recorded(method))["compile"]
    assert verdict == f"compile is {found} instead of {not found}"


@pytest.mark.slow
@every_method
def test_another_checkpointing_is_refused(recorded, method):
    found = method.activation_checkpointing
    verdict = verdicts_of(recorded(method))["checkpointing"]
    assert verdict == f"checkpointing is {found} instead of {not found}"


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY[2:], ids=lambda method: method.label)
def test_offloading_that_is_not_there_is_refused(recorded, method):
    verdict = verdicts_of(recorded(method))["offloading"]
    assert verdict == "offloading is False instead of True"


@pytest.mark.slow
@pytest.mark.parametrize(
    "sharding",
    [
        Sharding.FSDP_FULL_SHARD,
        pytest.param(Sharding.ZERO_3, marks=pytest.mark.thorough),
    ],
)
def test_a_compiled_model_whose_layers_are_not_is_refused(sharding, tmp_path):
    how = ("pythia-14m", sharding, "checkpointing", "eager")
    helped = found_on_one_rank("recomputed.py", *how, tmp_path)
    unhelped = found_on_one_rank("recomputed.py", *how, "unhelped", tmp_path)
    assert helped["verdict"] == ""
    # When this fails, Dynamo compiles them by itself: compile_recomputed_layers can go.
    assert unhelped["verdict"] == "no GPTNeoXLayer is compiled (compile failed)"


@pytest.fixture
def trainer(tmp_path, tiny_config, own_trainer_state) -> Trainer:
    """A Trainer of one process, after its training."""
    recipe = tiny_config().recipe
    return train_in_this_process(tmp_path, recipe, build_model(recipe, attention="eager"))


def test_a_single_process_needs_no_data_parallelism(trainer, tiny_config):
    check_in_force(trainer, tiny_config(workers=1), compiled=False)


def test_two_processes_that_do_not_synchronise_are_refused(trainer, tiny_config):
    with pytest.raises(MeasurementError, match="data parallel is False instead of True") as caught:
        check_in_force(trainer, tiny_config(workers=2), compiled=False)
    assert "; " not in str(caught.value)


def test_another_attention_is_refused(trainer, tiny_config):
    config = tiny_config(Method(free_lunch=True), workers=1)
    with pytest.raises(MeasurementError, match="attention is eager instead of sdpa"):
        check_in_force(trainer, config, compiled=False)


@pytest.mark.parametrize(
    ("value", "gpu_type", "free_lunch", "refused"),
    [
        ("1", "h100", False, True),
        ("0", "h100", False, False),
        # It is wanted, or there is none.
        ("1", "h100", True, False),
        ("1", "v100", False, False),
    ],
)
def test_fp32_that_the_environment_has_rounded_is_refused(
    value, gpu_type, free_lunch, refused, trainer, tiny_config, monkeypatch
):
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", value)
    hardware = dataclasses.replace(tiny_config(workers=1).hardware, gpu_type=gpu_type)
    config = tiny_config(Method(free_lunch=free_lunch), workers=1)
    config = dataclasses.replace(config, hardware=hardware)
    monkeypatch.setattr(trainer.model.config, "_attn_implementation", config.attention)
    if not refused:
        check_in_force(trainer, config, compiled=False)
        return
    with pytest.raises(MeasurementError) as caught:
        check_in_force(trainer, config, compiled=False)
    assert str(caught.value) == (
        f"{config.label}: not in force: "
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 has fp32 multiplied as TF32: unset it"
    )


def test_the_error_names_the_configuration_and_everything_that_differs(trainer, tiny_config):
    config = tiny_config(workers=2)
    method = Method(sharding=Sharding.FSDP_FULL_SHARD, activation_checkpointing=True)
    config = dataclasses.replace(config, method=method)
    with pytest.raises(MeasurementError) as caught:
        check_in_force(trainer, config, compiled=True)
    assert str(caught.value) == (
        f"{config.label}: not in force: sharding backend is None instead of fsdp; "
        "reshard after forward is False instead of True; "
        "checkpointing is False instead of True; compile is False instead of True"
    )
