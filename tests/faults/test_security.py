"""Files are data, secrets stay where they are, temporary folders are nobody else's."""

import ast
import json
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torchrunx
from exports import READERS, Exported
from in_process import BATCH, COMMANDS, MODEL, TARGET, Accepted, InProcess, furnished

from academic_pretraining.benchmarking import measure as measure_module
from academic_pretraining.benchmarking.effort import QUICK
from academic_pretraining.benchmarking.launch import SessionEnd
from academic_pretraining.benchmarking.measure import measure
from academic_pretraining.benchmarking.sessions import Sessions
from academic_pretraining.errors import MeasurementError
from experiments.sweep import sweep

ROOT = Path(__file__).resolve().parents[2]


class _Executes:
    """Makes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._proof),)


# Each would make a folder if somebody took it for more than data.
PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    **{
        f"pickle {protocol}": lambda proof, p=protocol: pickle.dumps(_Executes(proof), protocol=p)
        for protocol in (0, 2, 5)
    },
    "YAML": lambda proof: f"!!python/object/apply:os.mkdir ['{proof}']\n".encode(),
    "YAML in JSON": lambda proof: json.dumps(
        {"seed": f"!!python/object/apply:os.mkdir ['{proof}']"}
    ).encode(),
    "jsonpickle": lambda proof: (
        json.dumps({"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": [str(proof)]}]})
    ).encode(),
    "Tango": lambda proof: json.dumps(
        {"_type": "os::mkdir", "_constructor": "os::mkdir", "path": str(proof)}
    ).encode(),
    "Python": lambda proof: f"__import__('os').mkdir({str(proof)!r})\n".encode(),
}


@pytest.fixture
def place(tmp_path) -> InProcess:
    return furnished(tmp_path)


def test_the_payloads_work(tmp_path):
    for protocol in (0, 2, 5):
        proof = tmp_path / f"proof-{protocol}"
        pickle.loads(PAYLOADS[f"pickle {protocol}"](proof))
        assert proof.is_dir()


@pytest.mark.parametrize("script", READERS)
@pytest.mark.parametrize("name", ["args", "setting"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_exported_files_are_not_executed(place, script, name, payload):
    proof = place.folder / "proof"
    Exported(place).refuses(script, **{name: PAYLOADS[payload](proof)})
    assert not proof.exists()


ANSWERS = [
    ("print_optimal_config.py", *COMMANDS["print_optimal_config.py"]),
    ("benchmark.py", *COMMANDS["benchmark.py"]),
    ("to_training_arguments.py", "--output", "new.json", *TARGET, *MODEL, "--optimal"),
    ("to_training_arguments.py", "--output", "new.json", *TARGET, *MODEL, *BATCH),
]


@pytest.mark.parametrize("command", ANSWERS, ids=" ".join)
@pytest.mark.parametrize("name", ["data.json", "cache-metadata.json"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_results_are_not_executed(place, command, name, payload):
    proof = place.folder / "proof"
    for path in place.workspace.rglob(name):
        path.write_bytes(PAYLOADS[payload](proof))
    status, _, err = place.run(*command)
    assert status in (0, 2)
    assert ("is left out: " in err) is (name == "data.json")
    assert not proof.exists()


@pytest.mark.parametrize("script", READERS)
@pytest.mark.parametrize("kernel", ["someone/kernel", "someone/kernel@main", "sdpa|someone/kernel"])
def test_no_kernel_is_fetched_because_a_file_names_it(place, script, kernel):
    exported = Exported(place)
    setting = json.dumps(exported.setting | {"attention": kernel}).encode()
    assert exported.refuses(script, setting=setting) == (
        f"error: args.setting.json says attention is {kernel!r}, which is none: write one with "
        "scripts/to_training_arguments.py\n"
    )


EXECUTING = {"eval", "exec", "compile", "__import__"}
LOADERS = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
ATTRIBUTES = {
    ("torch", "load"),
    ("numpy", "load"),
    ("np", "load"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("os", "system"),
    ("os", "popen"),
    ("runpy", "run_path"),
}


def executing(source: str) -> Iterator[str]:
    """List what in a source may execute what it is given."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in EXECUTING:
                yield name
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (
                module,
                name,
            ) in ATTRIBUTES:
                yield f"{module}.{name}"
            case ast.Import(names=names):
                yield from (a.name for a in names if a.name.partition(".")[0] in LOADERS)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in LOADERS:
                yield module
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{a.name}" for a in names if (module, a.name) in ATTRIBUTES)
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                yield "shell=True"
            case ast.keyword(arg="trust_remote_code", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                yield "trust_remote_code"


SOURCES = [
    path
    for folder in ("src", "experiments", "scripts", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    # Keeps another's unpickling from running anything; tests/benchmarking has a test.
    if path.name != "launcher_logs.py"
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_here_executes_what_it_reads(path):
    assert list(executing(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "import cloudpickle as c", "eval('1')"),
        *("import torch\ntorch.load('f')", "from torch import load", "yaml.load(f)", "exec(s)"),
        *("run(c, shell=True)", "os.system(c)", "f(trust_remote_code=True)", "__import__(n)"),
    ],
)
def test_what_executes_would_be_found(source):
    assert len(list(executing(source))) == 1


SECRET = "hunter2-correct-horse"


def contents(folder: Path) -> bytes:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return b"".join(path.read_bytes() for path in files)


def test_a_workspace_holds_no_secret(configs, measurer, silent, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN_FOR_TEST", SECRET)
    measurer.errors[configs[1].label] = MeasurementError("it crashed")
    end = sweep(configs, tmp_path, QUICK, silent)
    assert end.failures
    assert end.records
    assert SECRET.encode() not in contents(tmp_path)


@pytest.mark.slow
def test_the_logs_of_a_session_that_fails_hold_no_secret(altered_session, tiny_config, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN_FOR_TEST", SECRET)
    session = altered_session("faults.raises", tiny_config())
    found = contents(session.directory)
    assert b"ZeroDivisionError: the original cause" in found
    assert SECRET.encode() not in found


@pytest.mark.parametrize("fails", [False, True])
def test_a_session_runs_in_a_private_folder_that_goes(
    monkeypatch, tiny_config, tmp_path, unlaunched, fails
):
    modes = []

    def run_session(launched, config, effort, history, *, on_ready, on_probe, on_result):
        directory = launched.directory
        modes.append(stat.S_IMODE(directory.stat().st_mode))
        (directory / "request.json").write_text("{}")
        if fails:
            raise KeyboardInterrupt
        return SessionEnd(environment={"model_flops_per_example": 1}, finished=True)

    monkeypatch.setattr(measure_module, "run_session", run_session)
    monkeypatch.setattr(measure_module, "conclude", lambda *_, **__: None)
    before = os.umask(0)
    try:
        measure(tiny_config(), QUICK, sessions=Sessions(tmp_path))
    except KeyboardInterrupt:
        assert fails
    finally:
        os.umask(before)
    assert modes == [0o700]
    assert list(tmp_path.iterdir()) == []


def test_verifying_works_in_a_private_folder_that_goes(place, monkeypatch):
    seen = []

    def launcher(**options):
        folder = Path(os.environ["TORCHRUNX_LOG_DIR"])
        seen.append((folder, stat.S_IMODE(folder.stat().st_mode)))
        raise Accepted

    monkeypatch.delenv("TORCHRUNX_LOG_DIR", raising=False)
    monkeypatch.setattr("in_process._accept", launcher)
    before = place.files()
    with pytest.raises(Accepted):
        place.run("verify.py", *COMMANDS["verify.py"])
    [(folder, mode)] = seen
    assert mode == 0o700
    assert not folder.exists()
    assert place.files() == before
    assert torchrunx.Launcher is not launcher
