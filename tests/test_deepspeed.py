import json

import pytest
import transformers
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from academic_pretraining.deepspeed import deepspeed_config
from academic_pretraining.methods import Backend, Method, Sharding
from academic_pretraining.models import MODELS

BUCKETS = {"allgather_bucket_size": 200_000_000, "reduce_bucket_size": 200_000_000}
ZERO = {
    Sharding.ZERO_1: {"stage": 1, "contiguous_gradients": True, **BUCKETS},
    Sharding.ZERO_2: {"stage": 2, "contiguous_gradients": True, "overlap_comm": True, **BUCKETS},
    Sharding.ZERO_3: {
        "stage": 3,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "sub_group_size": 1_000_000_000,
        "stage3_gather_16bit_weights_on_model_save": True,
        "leaf_module": {"classes": ["GPTNeoXLayer"]},
    },
}
HOST = {"device": "cpu", "pin_memory": True}

every_stage = pytest.mark.parametrize("sharding", ZERO)
with_and_without_offloading = pytest.mark.parametrize("offloading", [False, True])


def config_of(
    sharding: Sharding, *, model: str = "pythia-14m", compiles: bool = False, **method
) -> dict:
    wanted = Method(sharding=sharding, **method)
    config = deepspeed_config(wanted, MODELS[model], compiles=compiles)
    assert config is not None
    return config


def paths(value, *path):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, *path, key)
    else:
        yield ".".join(path), value


def test_the_stages_are_all_of_deepspeeds():
    assert set(ZERO) == {s for s in Sharding if s.backend is Backend.DEEPSPEED}


@pytest.mark.parametrize("sharding", [s for s in Sharding if s not in ZERO])
def test_other_shardings_have_no_configuration(sharding):
    method = Method(sharding=sharding, offloading=True)
    assert deepspeed_config(method, MODELS["pythia-14m"], compiles=True) is None


@every_stage
def test_the_stage_in_full(sharding):
    assert config_of(sharding)["zero_optimization"] == ZERO[sharding]


@pytest.mark.parametrize("model", MODELS)
def test_zero_3_gathers_the_layers_that_fsdp_gathers(model):
    zero = config_of(Sharding.ZERO_3, model=model)["zero_optimization"]
    assert zero["leaf_module"] == {"classes": [MODELS[model].layer_class]}


@every_stage
def test_compiled_only_zero_3_differs_by_the_linear_function_that_has_no_gradients(sharding):
    other = {"memory_efficient_linear": False} if sharding is Sharding.ZERO_3 else {}
    found = config_of(sharding, compiles=True)
    assert found["zero_optimization"] == ZERO[sharding] | other


@every_stage
def test_offloading_adds_the_host_and_nothing_else(sharding):
    offloaded = {"offload_optimizer": HOST}
    if sharding is Sharding.ZERO_3:
        offloaded["offload_param"] = HOST
    found = config_of(sharding, offloading=True)
    assert found.pop("zero_optimization") == ZERO[sharding] | offloaded
    plain = config_of(sharding)
    del plain["zero_optimization"]
    assert found == plain


@every_stage
@with_and_without_offloading
def test_outside_the_stage_the_trainer_decides(sharding, offloading):
    config = config_of(sharding, offloading=offloading)
    del config["zero_optimization"]
    assert config == {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "fp16": {"enabled": "auto"},
        "bf16": {"enabled": "auto"},
        "zero_force_ds_cpu_optimizer": False,
    }


@every_stage
@with_and_without_offloading
def test_optimizer_and_schedule_stay_the_trainers(sharding, offloading):
    config = config_of(sharding, offloading=offloading)
    names = {part for path, _ in paths(config) for part in path.split(".")}
    assert not names & {"optimizer", "scheduler", "zero_allow_untested_optimizer"}


@every_stage
def test_checkpointing_and_free_lunch_leave_it_alone(sharding):
    assert config_of(sharding, activation_checkpointing=True, free_lunch=True) == config_of(
        sharding
    )


def test_each_call_builds_afresh():
    config = config_of(Sharding.ZERO_3, offloading=True)
    before = json.dumps(config)
    config["fp16"]["enabled"] = True
    config["zero_optimization"]["offload_optimizer"]["device"] = "nvme"
    assert config["zero_optimization"]["offload_param"] == HOST
    assert json.dumps(config_of(Sharding.ZERO_3, offloading=True)) == before


@pytest.mark.usefixtures("own_trainer_state")
@every_stage
@with_and_without_offloading
@pytest.mark.parametrize("model", MODELS)
def test_the_trainer_fills_in_all_that_is_automatic(sharding, offloading, model, tmp_path):
    recipe = MODELS[model]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        max_grad_norm=recipe.max_grad_norm,
    )
    architecture = getattr(transformers, recipe.config_class)(**recipe.architecture)
    holder = type("Model", (), {"config": architecture})()
    config = HfTrainerDeepSpeedConfig(config_of(sharding, model=model, offloading=offloading))
    # A machine without a GPU refuses fp16 in the arguments' constructor.
    arguments.fp16 = True
    config.trainer_config_process(arguments)
    config.trainer_config_finalize(arguments, holder, 100)
    filled = dict(paths(config.config))
    assert [path for path, value in filled.items() if value == "auto"] == []
    assert filled["gradient_clipping"] == recipe.max_grad_norm
    assert filled["train_micro_batch_size_per_gpu"] == 2
    assert filled["gradient_accumulation_steps"] == 8
    assert (filled["fp16.enabled"], filled["bf16.enabled"]) == (True, False)
    # DeepSpeed refuses keys that it does not know.
    zero = DeepSpeedZeroConfig(**config.config["zero_optimization"])
    assert zero.stage == sharding.stage
    assert (zero.offload_optimizer is not None) == offloading
    assert (zero.offload_param is not None) == (offloading and sharding is Sharding.ZERO_3)
