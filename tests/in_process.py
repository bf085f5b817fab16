"""Runs the real scripts inside the tests' process, a thousand in the time of twenty processes."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from samples import MEASURED, TIMING

from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import MODELS
from academic_pretraining.records import to_record
from experiments.export import export
from experiments.identity import cache_key, library_versions

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


class Accepted(BaseException):
    """Bad input came through to where processes would be started; no script may catch it."""


def _accept(*arguments: object, **named: object) -> None:
    raise Accepted


@dataclasses.dataclass(kw_only=True)
class InProcess:
    """A folder with everything that a script may touch, and a way to run scripts in it.

    Attributes:
        folder: where they run.
        workspace: folder of results that they are told of.
        cases: how often bad input was refused.
    """

    folder: Path
    workspace: Path
    cases: int = 0

    def environment(self) -> dict[str, str]:
        """Say what a script is told of its surroundings: no GPUs, and where results are."""
        return {
            "TANGO_WORKSPACE_DIR": str(self.workspace),
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "100",
            "PYTHONUTF8": "1",
        }

    def run(self, script: str, *arguments: object) -> tuple[int, str, str]:
        """Give exit status, stdout and stderr; nothing is left behind in the process."""
        out, err = _stream("strict"), _stream("backslashreplace")
        with (
            _process_kept(),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", [str(SCRIPTS / script), *map(str, arguments)]),
            mock.patch.object(sys, "path", [str(SCRIPTS), *sys.path]),
            mock.patch("torchrunx.Launcher", _accept),
            mock.patch("experiments.sweep.sweep", _accept),
        ):
            os.environ |= self.environment()
            os.environ.pop("SLURM_JOB_ID", None)
            status: object = 0
            try:
                runpy.run_path(str(SCRIPTS / script), run_name="__main__")
            except SystemExit as end:
                status = end.code or 0
        assert isinstance(status, int)
        return status, _text(out), _text(err)

    def refuses(self, script: str, *arguments: object) -> str:
        """Check that input is refused as bad input must be; give what was said."""
        before = self.files()
        status, out, err = self.run(script, *arguments)
        assert "Traceback" not in err
        assert status == 2, err
        assert out == ""
        assert err.startswith("error: "), err
        assert err.endswith("\n")
        assert err[:-1].isprintable()
        assert self.files() == before
        self.cases += 1
        return err

    def files(self) -> dict[Path, tuple[int, bytes] | None]:
        """Everything around; of files also their age and content."""
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
            for path in self.folder.parent.rglob("*")
        }

    def remember(self, *contents: bytes) -> list[Path]:
        """Put results into the workspace as Tango would; give their paths."""
        paths = []
        for number, content in enumerate(contents):
            folder = self.workspace / "cache" / f"MeasureStep-001-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "data.json").write_bytes(content)
            (folder / "cache-metadata.json").write_text("{}")
            paths.append(folder / "data.json")
        return paths


def _stream(errors: str) -> io.TextIOWrapper:
    """Stand in for a stream of a process, which refuses or replaces what it cannot encode."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Take back what a script does to its process."""
    environment = dict(os.environ)
    answered = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root, torchrunx = logging.getLogger(), logging.getLogger("torchrunx")
    handlers, level, filters = list(root.handlers), root.level, list(torchrunx.filters)
    try:
        yield
    finally:
        for number, handler in answered.items():
            signal.signal(number, handler)
        root.handlers[:] = handlers
        root.setLevel(level)
        torchrunx.filters[:] = filters
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


def in_process(around: Path) -> InProcess:
    """Make an empty place to run scripts in."""
    folder = around / "elsewhere"
    folder.mkdir()
    return InProcess(folder=folder, workspace=around / "workspace")


ON_TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="a100")
ON_CPU = Hardware(num_nodes=1, gpus_per_node=1, gpu_type="cpu")


def made_up_record(hardware: Hardware = ON_TWO, model: str = "pythia-160m") -> dict[str, Any]:
    """Write a record with invented figures, as JSON types."""
    config = TrainingConfig(hardware=hardware, recipe=MODELS[model], method=Method())
    plan = config.plan_at(8)
    timing = dataclasses.replace(
        TIMING,
        micro_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        global_batch_size=plan.global_batch_size,
    )
    measurement = dataclasses.replace(MEASURED, best=timing, timings=(timing,), compile="off")
    record = to_record(config, measurement, versions=library_versions(config), measured_at=1.0)
    record |= {"key": cache_key(config)}
    return json.loads(json.dumps(record))


TARGET = ("--num-nodes", "1", "--gpus-per-node", "2", "--gpu-type", "a100")
MODEL = ("--model", "pythia-160m")
BATCH = ("--micro-batch-size", "8", "--gradient-accumulation-steps", "64")
# A good command of each script, for tests to spoil.
COMMANDS: dict[str, tuple[str, ...]] = {
    "benchmark.py": (*TARGET, *MODEL, "--cmd", "print-results"),
    "print_optimal_config.py": (*TARGET, *MODEL),
    "to_training_arguments.py": ("--output", "new.json", *TARGET, *MODEL, *BATCH),
    "training.py": (
        *("--output-dir", "run", "--model-type", "pythia-14m"),
        *("--training-arguments", "args.json"),
    ),
    "verify.py": ("--training-arguments", "args.json"),
}


def furnished(around: Path) -> InProcess:
    """Make a place with results and an exported setting, in which every good command works."""
    place = in_process(around)
    records = [made_up_record(), made_up_record(ON_CPU, "pythia-14m")]
    place.remember(*(json.dumps(record).encode() for record in records))
    config = TrainingConfig(hardware=ON_CPU, recipe=MODELS["pythia-14m"], method=Method())
    export(place.folder / "args.json", config, config.plan_at(8), records)
    return place


def spoilt(script: str, flag: str, *values: str) -> list[str]:
    """Give a good command with other values of a flag, or without it."""
    arguments = list(COMMANDS[script])
    if flag in arguments:
        at = arguments.index(flag)
        del arguments[at : at + 2]
    return [*arguments, *([flag, *values] if values else [])]
