"""The code stands in layers, and each third-party package has its place.

The imports are read from the sources, wherever in a file they stand, so nothing is imported.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up: a module imports from its own layer and from those before it. A name stands
# for the module and everything inside it.
LAYERS: dict[str, tuple[str, ...]] = {
    "errors": ("academic_pretraining.errors",),
    "tables": (
        "academic_pretraining.gpus",
        "academic_pretraining.models",
        "academic_pretraining.methods",
        "academic_pretraining.numerics",
        "academic_pretraining.occupancy",
        "academic_pretraining.cores",
        "academic_pretraining.intervals",
    ),
    "configuration": (
        "academic_pretraining.config",
        "academic_pretraining.training_arguments",
        "academic_pretraining.deepspeed",
        "academic_pretraining.fsdp",
        "academic_pretraining.analytic",
        "academic_pretraining.schedule",
    ),
    "results": (
        "academic_pretraining.records",
        "academic_pretraining.identity",
        "academic_pretraining.rows",
        "academic_pretraining.results",
        "academic_pretraining.checks",
        "academic_pretraining.plotting",
    ),
    "benchmarking": ("academic_pretraining.benchmarking",),
    "experiments": ("experiments",),
    "scripts": ("scripts",),
}

# The first layers need the standard library alone.
STANDARD_LIBRARY_ONLY = ("errors", "tables", "configuration")

# Where a third-party package may be imported. One that is not in this table has no place yet.
_FROM_RESULTS_ON = (
    *LAYERS["results"],
    "academic_pretraining.benchmarking",
    "experiments",
    "scripts",
)
HOMES: dict[str, tuple[str, ...]] = {
    "torch": ("academic_pretraining.benchmarking", "scripts.training"),
    "transformers": ("academic_pretraining.benchmarking", "scripts.training"),
    "accelerate": ("academic_pretraining.benchmarking",),
    "deepspeed": ("academic_pretraining.benchmarking",),
    "numpy": ("academic_pretraining.benchmarking",),
    "psutil": ("academic_pretraining.benchmarking",),
    "torchrunx": (
        "academic_pretraining.benchmarking.session",
        "academic_pretraining.benchmarking.launcher_logs",
        "scripts.training",
    ),
    "polars": _FROM_RESULTS_ON,
    "altair": ("academic_pretraining.plotting", "scripts"),
    "great_tables": ("academic_pretraining.plotting", "scripts"),
    "tango": ("experiments",),
    "submitit": ("experiments.slurm",),
    "rich": ("experiments", "scripts"),
    "tyro": ("scripts",),
    "marimo": ("scripts",),
}

# What must not be asked while a module is being imported: the answer belongs to the caller.
SURROUNDINGS = {"os.environ", "os.getenv", "os.getcwd", "pathlib.Path.cwd", "pathlib.Path.home"}


def inside(module: str, *places: str) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def layer_of(module: str) -> str | None:
    return next((name for name, places in LAYERS.items() if inside(module, *places)), None)


def is_ours(module: str) -> bool:
    return inside(module, "academic_pretraining", "experiments", "scripts")


def imported_names(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of everything that is imported, by statement or by call."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                parents = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*parents, *([source] if source else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def import_faults(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Say which imports of a module break a rule of the tables above."""
    layer = layer_of(module)
    if layer is None:
        return [f"{module}: stands in no layer; add it to LAYERS"]
    order = list(LAYERS)
    package = module if is_package else module.rpartition(".")[0]
    faults = []
    for line, name in imported_names(ast.parse(source), package):
        top = name.partition(".")[0]
        # A script finds its neighbours without a package, for it runs from its own folder.
        if inside(module, "scripts") and f"{package}.{top}" in MODULES:
            continue
        where = f"{module}:{line}"
        if is_ours(name):
            target = layer_of(name)
            if target is None:
                if name.count(".") == 0 or module == "academic_pretraining":
                    continue
                faults.append(f"{where}: {name} stands in no layer")
            elif order.index(target) > order.index(layer):
                faults.append(f"{where}: {layer} must not import {name} of {target}")
        elif top in sys.stdlib_module_names:
            continue
        elif top not in HOMES:
            faults.append(f"{where}: {top} has no place; add it to HOMES")
        elif not inside(module, *HOMES[top]):
            faults.append(f"{where}: {top} belongs in {', '.join(HOMES[top])}")
    return faults


def run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is evaluated when a module is imported: all but the bodies of functions."""
    match node:
        case ast.Lambda(args=args):
            outside = [args]
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            outside = [*node.decorator_list, node.args]
        case _:
            outside = ast.iter_child_nodes(node)
    yield node
    for child in outside:
        yield from run_on_import(child)


def surroundings_faults(module: str, source: str) -> list[str]:
    """Say where importing a module asks for the environment or the working directory."""
    tree = ast.parse(source)
    full_names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    faults = []
    for node in run_on_import(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, _, rest = ast.unparse(node).partition(".")
            name = full_names.get(first, first) + (f".{rest}" if rest else "")
            if name in SURROUNDINGS:
                faults.append(f"{module}:{node.lineno}: reads {name} on import")
    return faults


def modules() -> dict[str, Path]:
    found = {}
    for top in (ROOT / "src", ROOT):
        for folder in ("academic_pretraining", "experiments", "scripts"):
            for path in sorted((top / folder).rglob("*.py")):
                parts = path.relative_to(top).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    # Holds the package's own docstring only, and stands before all layers.
    del found["academic_pretraining"]
    return found


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_keep_to_the_layers(module: str) -> None:
    path = MODULES[module]
    is_package = path.name == "__init__.py"
    assert import_faults(module, path.read_text(), is_package=is_package) == []


@pytest.mark.parametrize("module", [m for m in MODULES if not inside(m, "scripts")])
def test_importing_asks_nothing_of_the_surroundings(module: str) -> None:
    assert surroundings_faults(module, MODULES[module].read_text()) == []


def test_every_imported_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]}
    for requirements in project["optional-dependencies"].values():
        declared |= {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}
    imported = {
        name.partition(".")[0]
        for module, path in MODULES.items()
        for _, name in imported_names(ast.parse(path.read_text()), module)
    } & set(HOMES)
    distributions = {"tango": "ai2-tango"}
    assert {distributions.get(p, p).replace("_", "-") for p in imported} <= declared


def test_package_itself_imports_nothing() -> None:
    source = (ROOT / "src" / "academic_pretraining" / "__init__.py").read_text()
    assert list(imported_names(ast.parse(source), "academic_pretraining")) == []


def test_every_layer_is_looked_at() -> None:
    assert {layer_of(module) for module in MODULES} == set(LAYERS)


@pytest.mark.parametrize("layer", STANDARD_LIBRARY_ONLY)
def test_no_package_has_its_place_in_the_first_layers(layer: str) -> None:
    assert [
        package
        for package, places in HOMES.items()
        if any(inside(place, *LAYERS[layer]) for place in places)
    ] == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        (
            "academic_pretraining.errors",
            "from academic_pretraining.gpus import GPUS",
            "errors must not import academic_pretraining.gpus.GPUS of tables",
        ),
        (
            "academic_pretraining.methods",
            "from academic_pretraining import config",
            "tables must not import academic_pretraining.config of configuration",
        ),
        (
            "academic_pretraining.models.pythia",
            "from ..training_arguments import x",
            "tables must not import academic_pretraining.training_arguments.x of configuration",
        ),
        (
            "academic_pretraining.analytic",
            "from . import results",
            "configuration must not import academic_pretraining.results of results",
        ),
        (
            "academic_pretraining.results",
            "def f():\n    import academic_pretraining.benchmarking.probe",
            "results must not import academic_pretraining.benchmarking.probe of benchmarking",
        ),
        (
            "academic_pretraining.benchmarking.build",
            "import experiments.steps",
            "benchmarking must not import experiments.steps of experiments",
        ),
        (
            "experiments.sweep",
            "from scripts.benchmark import main",
            "experiments must not import scripts.benchmark.main of scripts",
        ),
        (
            "academic_pretraining.config",
            "import torch.distributed as dist",
            "torch belongs in academic_pretraining.benchmarking, scripts.training",
        ),
        (
            "academic_pretraining.gpus",
            "import importlib\nimportlib.import_module('torch')",
            "torch belongs in academic_pretraining.benchmarking, scripts.training",
        ),
        (
            "academic_pretraining.methods",
            "import polars",
            "polars belongs in academic_pretraining.records, academic_pretraining.identity, "
            "academic_pretraining.rows, academic_pretraining.results, "
            "academic_pretraining.checks, academic_pretraining.plotting, "
            "academic_pretraining.benchmarking, experiments, scripts",
        ),
        (
            "academic_pretraining.benchmarking.probe",
            "from torchrunx import Launcher",
            "torchrunx belongs in academic_pretraining.benchmarking.session, "
            "academic_pretraining.benchmarking.launcher_logs, scripts.training",
        ),
        ("experiments.steps", "import submitit", "submitit belongs in experiments.slurm"),
        ("scripts.benchmark", "from tango import Step", "tango belongs in experiments"),
        ("experiments.steps", "import tyro", "tyro belongs in scripts"),
        ("experiments.steps", "import leftpad", "leftpad has no place; add it to HOMES"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str, fault: str) -> None:
    line = len(source.splitlines())
    assert import_faults(module, source) == [f"{module}:{line}: {fault}"]


def test_a_module_without_a_layer_is_found() -> None:
    module = "academic_pretraining.newcomer"
    assert import_faults(module, "") == [f"{module}: stands in no layer; add it to LAYERS"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("academic_pretraining.config", "import json\nfrom academic_pretraining.gpus import GPUS"),
        ("academic_pretraining.models.vit", "from academic_pretraining.methods import Method"),
        ("academic_pretraining.benchmarking.session", "import torch, torchrunx"),
        ("experiments.slurm", "import submitit, tango"),
        ("scripts.plotting.winners", "import marimo, polars"),
    ],
)
def test_an_allowed_import_is_not_a_fault(module: str, source: str) -> None:
    assert import_faults(module, source) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import os\nHOME = os.environ['HOME']", "os.environ"),
        ("import os\nHOME = os.environ.get('HOME')", "os.environ"),
        ("from os import getenv\nHOME = getenv('HOME')", "os.getenv"),
        ("from pathlib import Path\ndef f(where=Path.cwd()): ...", "pathlib.Path.cwd"),
        ("import os\nclass A:\n    where = os.getcwd()", "os.getcwd"),
    ],
)
def test_reading_the_surroundings_on_import_is_found(source: str, name: str) -> None:
    line = len(source.splitlines())
    assert surroundings_faults("m", source) == [f"m:{line}: reads {name} on import"]


def test_reading_the_surroundings_in_a_function_is_no_fault() -> None:
    assert surroundings_faults("m", "import os\ndef f():\n    return os.environ['HOME']") == []


def loaded_by(statement: str, *names: str) -> set[str]:
    """Run a statement in a fresh interpreter and return which of these modules it loads."""
    program = f"import sys\n{statement}\nprint(*(set({names!r}) & set(sys.modules)))"
    paths = (str(ROOT / "src"), str(ROOT))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())


def test_first_layers_load_no_third_party_package() -> None:
    light = [module for module in MODULES if layer_of(module) in STANDARD_LIBRARY_ONLY]
    assert loaded_by(f"import {', '.join(light)}", *HOMES) == set()


@pytest.mark.parametrize("module", ["academic_pretraining.results", "experiments.workspace"])
def test_reading_results_loads_no_torch(module: str) -> None:
    if module not in MODULES:
        pytest.skip(f"{module} does not exist yet")
    assert loaded_by(f"import {module}", "torch", "transformers", "deepspeed") == set()


@pytest.mark.parametrize(
    "script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name
)
def test_no_script_loads_torch_before_it_has_work(script: Path) -> None:
    # Python puts the folder of a script that it runs at the head of the path.
    statement = (
        f"import runpy; sys.path.insert(0, {str(script.parent)!r}); "
        f"runpy.run_path({str(script)!r}, run_name='imported')"
    )
    heavy = {"torch", "transformers", "deepspeed"}
    assert loaded_by(statement, *heavy) == set()


def test_a_loaded_package_would_be_seen() -> None:
    assert loaded_by("import json.decoder", "json", "torch") == {"json"}
