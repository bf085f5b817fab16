"""A process that is killed in the middle of a sweep leaves nothing to repair by hand."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.records import config_of
from experiments.steps import MeasureContext, measure_step
from experiments.sweep import sweep
from experiments.workspace import incomplete, read_records

# Measures the second of the settings, and dies on its way.
CHILD = """
import importlib.util, os, signal, sys
from pathlib import Path

from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import MethodSpace
from academic_pretraining.models import MODELS
import experiments.steps
from experiments.sweep import sweep

workspace, when, helpers = sys.argv[1:]
sys.path.insert(0, str(Path(helpers).parent))
spec = importlib.util.spec_from_file_location("helpers", helpers)
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
machine = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")
recipe = MODELS["pythia-14m"]
valid = [method for method, why in grid(machine, recipe, MethodSpace.ALL) if not why]
configs = [TrainingConfig(hardware=machine, recipe=recipe, method=m) for m in valid[:4]]
measurer = helpers.Measurer()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def watch(event, arguments):
    if len(measurer.configs) < 2:
        return
    if when == "before storing" and event == "open" and str(arguments[0]).endswith("data.json"):
        die()
    if event == "os.rename" and str(arguments[0]).endswith("cache-metadata.temp"):
        if when == "between data and metadata":
            die()


class Reporter:
    def starts(self, *_): ...
    def recalls(self, *_): ...
    def ends(self, *_):
        if when == "after storing" and len(measurer.configs) == 2:
            die()
    def probes(self, *_):
        if when == "while measuring" and len(measurer.configs) == 2:
            die()


measurer.probe = "anything"
experiments.steps.measure = measurer
sys.addaudithook(watch)
sweep(configs, Path(workspace), QUICK, Reporter())
"""
# How many of the four settings the next run has to measure.
LEFT = {
    "while measuring": 3,
    "before storing": 3,
    "between data and metadata": 3,
    "after storing": 2,
}


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory) -> dict[str, Path]:
    """Give the workspace that a killed process left, by the moment of its death."""
    helpers = str(Path(__file__).parents[1] / "sweeping.py")
    folders = {when: tmp_path_factory.mktemp("killed") for when in LEFT}
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(folder), when, helpers])
        for when, folder in folders.items()
    ]
    assert [child.wait(120) for child in children] == [-signal.SIGKILL] * len(children)
    return folders


@pytest.mark.parametrize("when", LEFT)
def test_the_next_run_recovers_by_itself(when, workspaces, configs, measurer, silent):
    folder = workspaces[when]
    left = configs[-LEFT[when] :]
    records, unreadable = read_records(folder)
    assert len(unreadable) == (when == "between data and metadata")
    assert len(records) == 4 - LEFT[when]
    assert incomplete(configs, folder) == left
    data = result_of(configs[1], folder) / "data.json"
    assert data.exists() is (when in ("between data and metadata", "after storing"))

    end = sweep(configs, folder, QUICK, silent)
    assert measurer.taken() == left
    assert (len(end.records), end.measured, end.failures) == (4, len(left), {})

    assert sweep(configs, folder, QUICK, silent).measured == 0
    assert measurer.taken() == []
    records, unreadable = read_records(folder)
    assert {config_of(record).method for record in records} == {c.method for c in configs}
    assert unreadable == []


def result_of(config, folder: Path) -> Path:
    step = measure_step(MeasureContext(config, QUICK, Sessions(folder)))
    return folder / "cache" / step.unique_id
