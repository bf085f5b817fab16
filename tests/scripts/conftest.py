import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from samples import MEASURED, TIMING

from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import MODELS
from academic_pretraining.records import to_record
from experiments.identity import cache_key, library_versions

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """How a script ended and what it said."""

    status: int
    out: str
    err: str


@dataclasses.dataclass(kw_only=True)
class CommandLine:
    """Runs the real scripts from a folder that has nothing to do with them.

    Attributes:
        folder: where they run.
        workspace: folder of results that they are told of.
        poison: folder with a torch that cannot be imported.
        real: what to put before Python's path where torch is needed.
    """

    folder: Path
    workspace: Path
    poison: Path
    real: Path | None = None

    def environment(self, *, torch: bool = False) -> dict[str, str]:
        """Hide this machine's GPUs, and torch from what must do without it."""
        environment = os.environ | {
            "TANGO_WORKSPACE_DIR": str(self.workspace),
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "100",
        }
        first = self.real if torch else self.poison
        return environment | ({"PYTHONPATH": str(first)} if first else {})

    def command(self, script: str, *arguments: object) -> list[str]:
        return [sys.executable, str(SCRIPTS / script), *map(str, arguments)]

    def __call__(
        self, script: str, *arguments: object, torch: bool = False, timeout: float = 240.0
    ) -> Answer:
        done = subprocess.run(
            self.command(script, *arguments),
            cwd=self.folder,
            env=self.environment(torch=torch),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Answer(status=done.returncode, out=done.stdout, err=done.stderr)

    def on_terminal(self, columns: int, script: str, *arguments: object) -> tuple[int, str]:
        """Run a script in a terminal of so many columns; give its status and what is seen."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        environment = self.environment()
        del environment["COLUMNS"]
        process = subprocess.Popen(
            self.command(script, *arguments),
            cwd=self.folder,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        seen = b""
        # On Linux the end of a terminal is an error.
        with contextlib.suppress(OSError):
            while some := os.read(ours, 65_536):
                seen += some
        os.close(ours)
        return process.wait(), re.sub(r"\x1b\[[0-9;]*m", "", seen.decode()).replace("\r", "")

    def refuses(self, script: str, *arguments: object, torch: bool = False) -> str:
        """Give the one line of an error; nothing else may come of bad input."""
        before = self.files()
        answer = self(script, *arguments, torch=torch)
        assert "Traceback" not in answer.err
        assert answer.status == 2
        assert answer.out == ""
        assert self.files() == before
        [line] = answer.err.splitlines()
        start, _, message = line.partition("error: ")
        assert start == ""
        return message

    def files(self) -> dict[Path, bytes | None]:
        """Everything around, with its content."""
        return {
            path: path.read_bytes() if path.is_file() else None
            for path in self.folder.parent.rglob("*")
        }


@pytest.fixture(scope="session")
def poison(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("poison")
    (folder / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    return folder


@pytest.fixture(scope="session")
def command_line(poison) -> Callable[[Path], CommandLine]:
    def make(around: Path) -> CommandLine:
        folder = around / "elsewhere"
        folder.mkdir()
        return CommandLine(folder=folder, workspace=around / "workspace", poison=poison)

    return make


@pytest.fixture
def cli(tmp_path, command_line) -> CommandLine:
    return command_line(tmp_path)


@pytest.fixture(scope="session")
def made_up() -> Callable[..., dict[str, Any]]:
    """Write a record with invented figures."""

    def make(
        hardware: Hardware,
        method: Method,
        step_seconds: float,
        *,
        model: str = "pythia-160m",
        micro_batch_size: int = 8,
        compile_state: str = "on",
        measured_at: float = 1.0,
        tolerance: float = 0.0,
        versions: Mapping[str, str] = MappingProxyType({}),
        limits: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        config = TrainingConfig(
            hardware=hardware, recipe=MODELS[model], method=method, batch_tolerance=tolerance
        )
        plan = config.plan_at(micro_batch_size)
        timing = dataclasses.replace(
            TIMING,
            micro_batch_size=plan.micro_batch_size,
            gradient_accumulation_steps=plan.gradient_accumulation_steps,
            global_batch_size=plan.global_batch_size,
            step_seconds=step_seconds,
            compiled=compile_state in ("on", "no graph"),
        )
        measurement = dataclasses.replace(
            MEASURED, best=timing, timings=(timing,), compile=compile_state
        )
        all_versions = {**library_versions(config), **versions}
        record = to_record(config, measurement, versions=all_versions, measured_at=measured_at)
        key = json.loads(cache_key(config, limits)) | {"versions": all_versions}
        written = json.dumps(key, sort_keys=True, separators=(",", ":"))
        return record | {"key": written, "limits": dict(limits)}

    return make


@pytest.fixture
def see_gpus(cli, monkeypatch) -> Callable[..., None]:
    """Give this machine GPUs with these names, as nvidia-smi would list them."""

    def see(*names: str) -> None:
        folder = cli.folder.parent / "bin"
        folder.mkdir()
        lines = [f"{i}, GPU-{i}, {name}, 0, 81920" for i, name in enumerate(names)]
        smi = folder / "nvidia-smi"
        smi.write_text("\n".join(["#!/bin/sh", "cat <<END", *lines, "END", ""]))
        smi.chmod(0o755)
        hidden = type(cli).environment

        def environment(*, torch: bool = False) -> dict[str, str]:
            found = hidden(cli, torch=torch)
            del found["CUDA_VISIBLE_DEVICES"]
            return found | {"PATH": f"{folder}{os.pathsep}{found['PATH']}"}

        monkeypatch.setattr(cli, "environment", environment)

    return see


@pytest.fixture
def remember(cli) -> Callable[..., None]:
    """Put records into the workspace as Tango would."""

    def write(*records: dict[str, Any]) -> None:
        for number, record in enumerate(records):
            folder = cli.workspace / "cache" / f"MeasureStep-001-{number}"
            folder.mkdir(parents=True)
            (folder / "data.json").write_text(json.dumps(record))
            (folder / "cache-metadata.json").write_text("{}")

    return write
