"""Fixtures that train in real sessions, on small models; see in_worker/ for what they alter."""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from academic_pretraining.benchmarking.effort import QUICK, Effort
from academic_pretraining.benchmarking.launch import Launched, SessionEnd, launch, run_session
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import get_model

IN_WORKER = Path(__file__).parent / "in_worker"
# Too short a time for the fewest whole steps of 3 micro-batches, so that the epochs end with a
# shorter step; and no longer step to predict, so that none is run, whatever the noise.
_ONE_RUN = dataclasses.replace(QUICK, timing_seconds=7.0)


@dataclass(kw_only=True)
class Session:
    """What a test finds when a session is over."""

    end: SessionEnd
    directory: Path
    config: TrainingConfig
    ended_at: float

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What each rank recorded about its own model; see in_worker/alterations.py."""
        ranks = range(self.config.hardware.world_size)
        return [json.loads((self.directory / f"rank{r}.facts.json").read_text()) for r in ranks]

    @property
    def struck_at(self) -> list[float]:
        """When the fault of each faulty rank came, in seconds since the epoch."""
        return [float(path.read_text()) for path in self.directory.glob("rank*.fault")]


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., TrainingConfig]:
    def make(
        method: Method | None = None,
        *,
        global_batch_size: int = 8,
        workers: int = 2,
        gpu_type: str = "cpu",
        **changes,
    ) -> TrainingConfig:
        recipe = get_model("pythia-14m")
        small = {
            "vocab_size": 64,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        }
        recipe = dataclasses.replace(
            recipe,
            architecture={**recipe.architecture, **small},
            num_classes=64,
            sequence_length=16,
            global_batch_size=global_batch_size,
            **changes,
        )
        hardware = Hardware(num_nodes=1, gpus_per_node=workers, gpu_type=gpu_type)
        return TrainingConfig(hardware=hardware, recipe=recipe, method=method or Method())

    return make


@pytest.fixture(scope="session")
def alter() -> Callable[[pytest.MonkeyPatch, str], None]:
    """Have the workers of all sessions changed by `module.function` of in_worker/."""

    def change(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv("PYTHONPATH", str(IN_WORKER), prepend=os.pathsep)
        monkeypatch.setenv("ALTERED", name)

    return change


@pytest.fixture(scope="session")
def altered_launch(tmp_path_factory, alter) -> Callable[..., Launched]:
    """Launch a session whose workers were changed, for `see_out`."""

    def start(name: str, config: TrainingConfig, ranks: str = "1") -> Launched:
        directory = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as monkeypatch:
            alter(monkeypatch, name)
            monkeypatch.setenv("FAULTY_RANKS", ranks)
            return launch(config.hardware, directory=directory)

    return start


@pytest.fixture(scope="session")
def altered_session(altered_launch) -> Callable[..., Session]:
    """Run a real session whose workers were changed."""

    def run(name: str, config: TrainingConfig, effort: Effort = QUICK, ranks: str = "1") -> Session:
        session = see_out(altered_launch(name, config, ranks), config, effort)
        if _lost_its_port(session.directory):
            session = see_out(altered_launch(name, config, ranks), config, effort)
        return session

    return run


def _lost_its_port(directory: Path) -> bool:
    """Whether another process took the port that torchrunx chose seconds before rank 0 binds it."""
    return "EADDRINUSE" in (directory / "launcher.log").read_text(errors="replace")


def see_out(launched: Launched, config: TrainingConfig, effort: Effort = QUICK) -> Session:
    """Run a session that is launched."""
    end = run_session(launched, config, effort, [])
    return Session(end=end, directory=launched.directory, config=config, ended_at=time.time())


class Unlaunched(Launched):
    """A session without processes."""

    @property
    def ended(self) -> bool:
        return self in _ended

    def end(self) -> None:
        _ended.append(self)


_ended: list[Launched] = []


@pytest.fixture
def unlaunched(monkeypatch) -> list[Unlaunched]:
    """Have nothing launched; gives what would have been, as it comes."""
    launches: list[Unlaunched] = []

    def launch(hardware: Hardware, *, directory: Path) -> Launched:
        process: Any = None
        made = Unlaunched(process=process, hardware=hardware, directory=directory, began_at=0.0)
        launches.append(made)
        return made

    monkeypatch.setattr("academic_pretraining.benchmarking.sessions.launch", launch)
    return launches


@pytest.fixture(scope="session")
def recorded(altered_session, tiny_config) -> Callable[[Method], Session]:
    """Train a method for real, once for all test files."""

    @functools.cache
    def train(method: Method) -> Session:
        return altered_session(
            "alterations.record", tiny_config(method, global_batch_size=6), _ONE_RUN
        )

    return train


@pytest.fixture(scope="session")
def living_in_group() -> Callable[[int], list[psutil.Process]]:
    """Wait for the processes of a group to end and list those that do not."""

    def living(group: int, patience_seconds: float = 30.0) -> list[psutil.Process]:
        until = time.monotonic() + patience_seconds
        while (found := _in_group(group)) and time.monotonic() < until:
            time.sleep(0.1)
        return found

    return living


def _in_group(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            same = os.getpgid(process.pid) == group
        except ProcessLookupError:
            continue
        if same and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
