import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from tango.common.exceptions import StepStateError
from tango.workspaces.local_workspace import LocalWorkspace

from academic_pretraining.benchmarking.effort import QUICK, Effort
from academic_pretraining.config import TrainingConfig, config_to_dict, grid
from academic_pretraining.errors import MeasurementError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import MethodSpace
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import ModelRecipe, Precision, Task
from academic_pretraining.results import config_of
from experiments.identity import cache_key, library_versions
from experiments.steps import MeasureContext, is_cached, measure_step, run_step
from experiments.sweep import sweep

PROSE = {"source", "note", "parameter_count_source"}
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
    "source": "another paper",
    "parameter_count_source": "another table",
    "note": "better said",
}


def step_of(config, tmp_path, effort=QUICK):
    return measure_step(MeasureContext(config, effort, tmp_path / "scratch"))


def install(folder, name: str, number: str) -> None:
    """Put a distribution's metadata in a folder, as pip would."""
    info = folder / f"{name}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")


def test_the_changes_below_are_of_every_field():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(ModelRecipe)}


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
    assert library_versions()[library] == "999.1"
    assert cache_key(configs[0]) != before


def test_an_unrelated_library_changes_nothing(configs, tmp_path, monkeypatch):
    before = cache_key(configs[0])
    install(tmp_path, "polars", "999.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert version("polars") == "999.1"
    assert cache_key(configs[0]) == before


def test_versions_are_those_installed(monkeypatch, tmp_path):
    names = ("torch", "transformers", "accelerate", "deepspeed")
    assert library_versions() == {name: version(name) for name in names}
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert library_versions() == dict.fromkeys(names, "not installed")


def test_the_key_is_canonical_json_without_labels(configs):
    key = cache_key(configs[-1])
    assert json.dumps(json.loads(key), sort_keys=True, separators=(",", ":")) == key
    assert set(json.loads(key)) == {
        *("hardware", "recipe", "method", "batch_tolerance", "arguments", "versions")
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
                    keys += [cache_key(dataclasses.replace(config, batch_tolerance=0.01))]
    assert len(set(keys)) == len(keys) > 100


def test_how_it_is_measured_does_not_change_the_step(configs, tmp_path):
    patient = MeasureContext(configs[0], Effort(timing_seconds=99), tmp_path / "there", print)
    assert measure_step(patient).unique_id == step_of(configs[0], tmp_path).unique_id


def test_a_step_is_measured_once(configs, measurer, tmp_path):
    workspace = LocalWorkspace(tmp_path)
    step = step_of(configs[0], tmp_path)
    assert not is_cached(step, workspace)
    began = time.time()
    record = run_step(step, workspace)
    assert is_cached(step, workspace)
    assert began <= record["measured_at"] <= time.time()
    assert measurer.taken() == [configs[0]]
    assert measurer.arguments == {"effort": QUICK, "scratch": tmp_path / "scratch"}

    again = run_step(step_of(configs[0], tmp_path), LocalWorkspace(tmp_path))
    assert measurer.taken() == []
    assert json.dumps(again) == json.dumps(record)
    assert config_of(again) == configs[0]
    assert again["versions"] == library_versions()
    assert not is_cached(step_of(configs[1], tmp_path), workspace)


def test_a_failure_is_raised_and_not_kept(configs, measurer, tmp_path):
    measurer.errors[configs[0].label] = MeasurementError("rank 1 died (log: /tmp/1.log)")
    for _ in range(2):
        step = step_of(configs[0], tmp_path)
        with pytest.raises(MeasurementError, match=r"^rank 1 died \(log: /tmp/1\.log\)$"):
            run_step(step, LocalWorkspace(tmp_path))
        assert not is_cached(step, LocalWorkspace(tmp_path))
    assert measurer.taken() == [configs[0], configs[0]]
    measurer.errors.clear()
    assert run_step(step_of(configs[0], tmp_path), LocalWorkspace(tmp_path))["measurement"]


def test_the_working_directory_is_given_back(configs, measurer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measurer.errors[configs[1].label] = KeyboardInterrupt()
    workspace = LocalWorkspace(tmp_path / "workspace")
    run_step(step_of(configs[0], tmp_path), workspace)
    with pytest.raises(KeyboardInterrupt):
        run_step(step_of(configs[1], tmp_path), workspace)
    assert tmp_path.samefile(".")


@pytest.mark.parametrize("kept", [0, 1, 200])
def test_a_result_that_was_cut_off_is_measured_again(configs, measurer, tmp_path, kept):
    workspace = LocalWorkspace(tmp_path)
    step = step_of(configs[0], tmp_path)
    record = run_step(step, workspace)
    data = tmp_path / "cache" / step.unique_id / "data.json"
    data.write_bytes(data.read_bytes()[:kept])
    again = run_step(step_of(configs[0], tmp_path), LocalWorkspace(tmp_path))
    assert measurer.taken() == [configs[0], configs[0]]
    assert config_of(again) == config_of(record)
    assert json.loads(data.read_text()) == again


# Measures a setting until its standard input is closed.
OTHER = """
import json, sys
from pathlib import Path

from tango.workspaces.local_workspace import LocalWorkspace

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.config import config_from_dict
from experiments import steps

folder, config = Path(sys.argv[1]), config_from_dict(json.loads(sys.argv[2]))


def measure(*args, **keywords):
    print("measuring", flush=True)
    sys.stdin.read()
    raise SystemExit


steps.measure = measure
step = steps.measure_step(steps.MeasureContext(config, QUICK, folder))
steps.run_step(step, LocalWorkspace(folder))
"""


@pytest.fixture
def other_process(configs, tmp_path) -> Iterator[None]:
    """Have the second setting measured by somebody else."""
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path), json.dumps(config_to_dict(configs[1]))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert "measuring" in iter(other.stdout.readline, "").__next__()
    yield
    other.communicate(timeout=60)


def test_what_another_process_measures_is_left_to_it(
    configs, measurer, silent, tmp_path, other_process
):
    with pytest.raises(StepStateError):
        run_step(step_of(configs[1], tmp_path), LocalWorkspace(tmp_path))
    end = sweep(configs, tmp_path, QUICK, silent)
    assert measurer.taken() == [configs[0], *configs[2:]]
    assert end.measured == 3
    assert end.failures == {
        configs[1].method.label: "being measured by another process: left to it"
    }
