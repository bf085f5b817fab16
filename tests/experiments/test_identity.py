import dataclasses
import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Backend, Method, MethodSpace, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import PROSE_FIELDS, ModelRecipe, Precision, Task
from experiments.identity import cache_key, library_versions, other_versions
from experiments.steps import MeasureContext, measure_step

LIBRARIES = ("torch", "transformers", "accelerate", "deepspeed")
KERNELS = ("mamba-ssm", "causal-conv1d", "mambapy")
PROSE = {"source", "note", "parameter_count", "parameter_count_source"}
CHANGES = {
    "name": "pythia-15m",
    "config_class": "LlamaConfig",
    "model_class": "LlamaForCausalLM",
    "architecture": {"hidden_size": 1},
    "task": Task.MASKED_LM,
    "sequence_length": 2048,
    "image_size": 224,
    "num_classes": 1,
    "parameter_count": 1,
    "global_batch_size": 2048,
    "max_steps": 143_001,
    "precision": Precision.BF16,
    "learning_rate": 2e-3,
    "adam_beta1": 0.91,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-6,
    "weight_decay": 0.0,
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": {},
    "warmup_steps": 0,
    "max_grad_norm": 0.0,
    "attention_kernel": "eager",
    "supports_compile": False,
    "supports_activation_checkpointing": False,
    "layer_class": "LlamaDecoderLayer",
    "kernel_packages": ("mambapy",),
    "source": "another paper",
    "parameter_count_source": "another table",
    "note": "better said",
}


def step_of(config, tmp_path, effort=QUICK):
    return measure_step(MeasureContext(config, effort, Sessions(tmp_path / "scratch")))


def install(folder, name: str, number: str) -> None:
    """Put a distribution's metadata in a folder, as pip would."""
    info = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")


def test_the_changes_below_are_of_every_field():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(ModelRecipe)}
    assert set(PROSE_FIELDS) == PROSE


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_recipe_is_another_measurement_and_prose_is_not(name, configs, tmp_path):
    recipe = dataclasses.replace(configs[0].recipe, **{name: CHANGES[name]})
    assert recipe != configs[0].recipe
    changed = dataclasses.replace(configs[0], recipe=recipe)
    assert (cache_key(changed) == cache_key(configs[0])) is (name in PROSE)
    same_step = step_of(changed, tmp_path).unique_id == step_of(configs[0], tmp_path).unique_id
    assert same_step is (name in PROSE)


@pytest.mark.parametrize("library", ["torch", "transformers", "accelerate", "deepspeed"])
def test_another_library_is_another_measurement(library, configs, tmp_path, monkeypatch):
    before = cache_key(configs[0])
    monkeypatch.syspath_prepend(tmp_path)
    assert cache_key(configs[0]) == before
    install(tmp_path, library, "999.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert library_versions(configs[0])[library] == "999.1"
    assert cache_key(configs[0]) != before


@pytest.mark.parametrize("sharding", Sharding)
def test_whether_compilation_is_tried_both_ways_decides_a_measurement(sharding, configs):
    hardware = dataclasses.replace(configs[0].hardware, gpus_per_node=2)
    method = Method(free_lunch=True, sharding=sharding)
    config = dataclasses.replace(configs[0], hardware=hardware, method=method)
    both = [False, True] if sharding is Sharding.ZERO_3 else None
    assert json.loads(cache_key(config)).get("compile") == both


@pytest.mark.parametrize("sharding", Sharding)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("free_lunch", [False, True])
def test_results_from_before_recomputed_layers_were_compiled_are_not_recalled(
    sharding, checkpointing, free_lunch, configs
):
    method = Method(
        free_lunch=free_lunch, activation_checkpointing=checkpointing, sharding=sharding
    )
    hardware = dataclasses.replace(configs[0].hardware, gpus_per_node=2)
    config = dataclasses.replace(configs[0], hardware=hardware, method=method)
    concerned = free_lunch and checkpointing and sharding.hooks_into_layers
    assert ("recomputed_layers" in json.loads(cache_key(config))) == concerned


@pytest.mark.parametrize("sharding", Sharding)
@pytest.mark.parametrize("model", ["convnext-large-1k", "convnext-xlarge-22k", "vit"])
def test_results_from_before_all_stages_were_sharded_are_not_recalled(sharding, model, configs):
    hardware = dataclasses.replace(configs[0].hardware, gpus_per_node=2)
    method = Method(free_lunch=True, sharding=sharding)
    config = TrainingConfig(hardware=hardware, recipe=MODELS[model], method=method)
    concerned = sharding.backend is Backend.FSDP and model != "vit"
    assert ("sharded_stages" in json.loads(cache_key(config))) == concerned


@pytest.fixture
def mamba(configs) -> TrainingConfig:
    return dataclasses.replace(configs[0], recipe=MODELS["mamba"])


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernels_of_a_model_decide_its_measurement_and_no_other(
    kernel, configs, mamba, tmp_path, monkeypatch
):
    before, others = cache_key(mamba), [cache_key(config) for config in configs]
    install(tmp_path, kernel, "999.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert library_versions(mamba)[kernel] == "999.1"
    assert cache_key(mamba) != before
    assert [cache_key(config) for config in configs] == others
    assert kernel not in library_versions(configs[0])


def test_only_mamba_takes_kernels_of_other_packages():
    assert {name: recipe.kernel_packages for name, recipe in MODELS.items()} == {
        name: KERNELS if name == "mamba" else () for name in MODELS
    }


def test_an_unrelated_library_changes_nothing(configs, tmp_path, monkeypatch):
    before = cache_key(configs[0])
    install(tmp_path, "polars", "999.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert version("polars") == "999.1"
    assert cache_key(configs[0]) == before


def test_versions_are_those_installed(configs, mamba, monkeypatch, tmp_path):
    assert library_versions(configs[0]) == {name: version(name) for name in LIBRARIES}
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert library_versions(mamba) == dict.fromkeys((*LIBRARIES, *KERNELS), "not installed")


def test_versions_that_differ_from_those_installed_are_named(monkeypatch, tmp_path):
    for name, number in (("torch", "2.13.0"), ("transformers", "5"), ("mamba-ssm", "2")):
        install(tmp_path, name, number)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert other_versions("torch 2.13.0, transformers 5", "vit") == ""
    assert other_versions("", "vit") == ""
    assert other_versions("torch 2.11.0, transformers 5, tango 1", "vit") == (
        "measured with torch 2.11.0; here is torch 2.13.0"
    )
    of_mamba = "torch 2.13.0, deepspeed 0.19, mamba-ssm 1, mambapy not installed"
    assert other_versions(of_mamba, "mamba") == (
        "measured with deepspeed 0.19, mamba-ssm 1; here is deepspeed not installed, mamba-ssm 2"
    )


def test_the_key_is_canonical_json_without_labels(configs):
    key = cache_key(configs[-1])
    assert json.dumps(json.loads(key), sort_keys=True, separators=(",", ":")) == key
    assert set(json.loads(key)) == {
        *("hardware", "recipe", "method", "global_batch_size", "arguments", "versions")
    }
    assert configs[-1].method.sharding.label not in key
    assert configs[-1].recipe.source not in key


@pytest.mark.parametrize("gpus", [1, 2])
def test_each_setting_of_a_grid_has_its_own_key(gpus):
    keys = []
    for num_nodes, gpu_type in ((1, "h200"), (1, "h100"), (2, "h200")):
        machine = Hardware(num_nodes=num_nodes, gpus_per_node=gpus, gpu_type=gpu_type)
        for recipe in (MODELS["mamba"], MODELS["pythia-14m"]):
            for method, why in grid(machine, recipe, MethodSpace.ALL):
                if not why:
                    config = TrainingConfig(hardware=machine, recipe=recipe, method=method)
                    keys += [cache_key(config)]
    assert len(set(keys)) == len(keys) > 90


def within(tolerance: float, gpus: int, global_batch_size: int = 1024) -> TrainingConfig:
    recipe = dataclasses.replace(MODELS["pythia-14m"], global_batch_size=global_batch_size)
    machine = Hardware(num_nodes=1, gpus_per_node=gpus, gpu_type="h200")
    return TrainingConfig(
        hardware=machine, recipe=recipe, method=Method(), batch_tolerance=tolerance
    )


@pytest.mark.parametrize(("gpus", "tolerances"), [(2, (0.0, 0.01, 0.5)), (3, (0.001, 0.01, 0.5))])
def test_a_tolerance_changes_nothing_beside_the_batch_that_it_led_to(gpus, tolerances, tmp_path):
    configs = [within(tolerance, gpus) for tolerance in tolerances]
    [key] = {cache_key(config) for config in configs}
    assert json.loads(key)["global_batch_size"] == {2: 1024, 3: 1023}[gpus]
    assert len({step_of(config, tmp_path).unique_id for config in configs}) == 1


def test_another_batch_is_another_measurement():
    # The first two divide 1023 over three GPUs.
    keys = [cache_key(within(0.01, 3, batch)) for batch in (1024, 1023, 1026)]
    assert [json.loads(key)["global_batch_size"] for key in keys] == [1023, 1023, 1026]
    assert len(set(keys)) == 3


def test_a_key_needs_no_torch():
    code = (
        "import sys\n"
        "from academic_pretraining.config import TrainingConfig\n"
        "from academic_pretraining.gpus import Hardware\n"
        "from academic_pretraining.methods import Method\n"
        "from academic_pretraining.models import MODELS\n"
        "from experiments.identity import cache_key\n"
        "machine = Hardware(num_nodes=1, gpus_per_node=2, gpu_type='h200')\n"
        "recipe = MODELS['pythia-14m']\n"
        "print(cache_key(TrainingConfig(hardware=machine, recipe=recipe, method=Method())))\n"
        "assert not {'tango', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == cache_key(within(0.0, 2))


def test_a_limited_search_is_another_measurement(configs):
    whole = cache_key(configs[0])
    assert cache_key(configs[0], {}) == whole
    limited = cache_key(configs[0], {"micro_batch_sizes": (4,)})
    assert limited != whole
    assert limited == cache_key(configs[0], {"micro_batch_sizes": [4]})
    assert limited != cache_key(configs[0], {"micro_batch_sizes": (8,)})
