import json
from typing import Any

import pytest
import transformers
from accelerate import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy, StateDictType

from academic_pretraining.fsdp import fsdp_config
from academic_pretraining.methods import Backend, Method, Sharding
from academic_pretraining.models import MODELS

RESHARDS = {Sharding.FSDP_SHARD_GRAD_OP: False, Sharding.FSDP_FULL_SHARD: True}

every_sharding = pytest.mark.parametrize("sharding", RESHARDS)
every_model = pytest.mark.parametrize("model", MODELS)
checkpointing_or_not = pytest.mark.parametrize("checkpointing", [False, True])
offloading_or_not = pytest.mark.parametrize("offloading", [False, True])


def config_of(sharding: Sharding, model: str = "pythia-160m", **method) -> dict:
    config = fsdp_config(Method(sharding=sharding, **method), MODELS[model])
    assert config is not None
    return config


def test_the_shardings_are_all_of_fsdps():
    assert set(RESHARDS) == {s for s in Sharding if s.backend is Backend.FSDP}


@pytest.mark.parametrize("sharding", [s for s in Sharding if s not in RESHARDS])
def test_other_shardings_have_no_configuration(sharding):
    assert fsdp_config(Method(sharding=sharding, offloading=True), MODELS["vit"]) is None


@every_sharding
@every_model
@checkpointing_or_not
@offloading_or_not
def test_the_configuration_in_full(sharding, model, checkpointing, offloading):
    method = {"activation_checkpointing": checkpointing, "offloading": offloading}
    found = config_of(sharding, model, **method)
    assert found == {
        "version": 2,
        "reshard_after_forward": RESHARDS[sharding],
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": [MODELS[model].layer_class],
        # The Trainer's own argument asks for it.
        "activation_checkpointing": False,
        "cpu_offload": offloading,
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    assert config_of(sharding, model, free_lunch=True, **method) == found


def test_each_call_builds_afresh():
    config = config_of(Sharding.FSDP_FULL_SHARD)
    before = json.dumps(config)
    config["transformer_layer_cls_to_wrap"].append("Spoilt")
    config["cpu_offload"] = True
    assert json.dumps(config_of(Sharding.FSDP_FULL_SHARD)) == before


@pytest.mark.usefixtures("own_trainer_state")
@every_sharding
@checkpointing_or_not
@offloading_or_not
def test_accelerate_does_what_the_trainer_passes_on(sharding, checkpointing, offloading, tmp_path):
    config = config_of(sharding, activation_checkpointing=checkpointing, offloading=offloading)
    fields = {"use_cpu": True, "fsdp": True, "fsdp_config": config}
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), **fields)
    passed_on: Any = arguments.fsdp_plugin_args
    plugin = FullyShardedDataParallelPlugin(**passed_on)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is RESHARDS[sharding]
    assert plugin.activation_checkpointing is False
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy) is offloading
    assert plugin.state_dict_type is StateDictType.SHARDED_STATE_DICT
    assert plugin.transformer_cls_names_to_wrap == ["GPTNeoXLayer"]
    assert plugin.auto_wrap_policy is not None
