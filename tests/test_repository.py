"""The files around the code agree with each other: a number or a command stands once."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from validate_pyproject.api import Validator
from validate_pyproject.error_reporting import ValidationError
from validate_pyproject.plugins import PluginWrapper
from validate_pyproject.types import Schema
from validate_pyproject_schema_store.schema import get_schema

ROOT = Path(__file__).resolve().parents[1]
CI_SCRIPT = ROOT / ".ci" / "run"
# Packages of conda-forge that take the place of a PyPI requirement of pyproject.toml.
CONDA_TOOLS = {"c-compiler", "cuda-toolkit", "cxx-compiler", "gcc", "gxx", "ninja", "python"}


def read_toml(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text())


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def readme_test_block(readme: str) -> list[str]:
    section = re.search(r"^## Tests$(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    assert section is not None, "README.md has no heading '## Tests'"
    block = re.search(r"^```bash\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert block is not None, "README.md has no bash block under '## Tests'"
    return block[1].splitlines()


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return read_toml("pyproject.toml")


@pytest.fixture(scope="module")
def pixi() -> dict[str, Any]:
    return read_toml("pixi.toml")


@pytest.fixture(scope="module")
def ci_job() -> dict[str, Any]:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    return workflow["jobs"]["test"]


@pytest.fixture(scope="module")
def validate_pixi() -> Any:
    plugin = PluginWrapper("pixi", lambda tool: Schema(get_schema(tool)))
    validator = Validator(plugins=[plugin])
    return lambda manifest: validator({"tool": {"pixi": manifest}})


class TestPixi:
    def test_manifest_fits_the_published_schema(
        self, pixi: dict[str, Any], validate_pixi: Any
    ) -> None:
        validate_pixi(pixi)

    def test_schema_rejects_a_misspelt_key(self, pixi: dict[str, Any], validate_pixi: Any) -> None:
        with pytest.raises(ValidationError, match="platfroms"):
            validate_pixi(pixi | {"workspace": pixi["workspace"] | {"platfroms": ["linux-64"]}})

    def test_installs_this_project_editable_with_everything_for_development(
        self, pixi: dict[str, Any], pyproject: dict[str, Any]
    ) -> None:
        entry = pixi["pypi-dependencies"][pyproject["project"]["name"]]
        assert entry == {"path": ".", "editable": True, "extras": ["dev"]}

    def test_states_a_requirement_of_pyproject_only_with_the_same_versions(
        self, pixi: dict[str, Any], pyproject: dict[str, Any]
    ) -> None:
        required = {requirement_name(r): r for r in pyproject["project"]["dependencies"]}
        repeated = {
            name: f"{name}{spec}"
            for name, spec in (pixi["dependencies"] | pixi["pypi-dependencies"]).items()
            if name in required
        }
        assert repeated == {name: required[name] for name in repeated}

    def test_names_nothing_that_pyproject_does_not_ask_for(
        self, pixi: dict[str, Any], pyproject: dict[str, Any]
    ) -> None:
        required = {requirement_name(r) for r in pyproject["project"]["dependencies"]}
        assert set(pixi["dependencies"]) - required <= CONDA_TOOLS

    @pytest.mark.parametrize("package", ["cuda-toolkit", "cxx-compiler", "gcc", "gxx", "ninja"])
    def test_brings_the_tools_that_compile_at_run_time(
        self, pixi: dict[str, Any], package: str
    ) -> None:
        assert package in pixi["dependencies"]

    def test_toolkit_is_the_version_that_the_system_must_support(
        self, pixi: dict[str, Any]
    ) -> None:
        assert pixi["dependencies"]["cuda-toolkit"] == pixi["system-requirements"]["cuda"] + ".*"

    @pytest.mark.parametrize(
        ("task", "command"), [("benchmark", "python scripts/benchmark.py"), ("test", "pytest -n 3")]
    )
    def test_tasks(self, pixi: dict[str, Any], task: str, command: str) -> None:
        assert pixi["tasks"][task]["cmd"] == command

    def test_benchmark_task_names_a_script_that_exists(self, pixi: dict[str, Any]) -> None:
        _, script = pixi["tasks"]["benchmark"]["cmd"].split()
        assert (ROOT / script).is_file()


class TestContinuousIntegration:
    def test_workflow_calls_the_script_and_nothing_else(self, ci_job: dict[str, Any]) -> None:
        commands = [step["run"] for step in ci_job["steps"] if "run" in step]
        assert commands == ["bash .ci/run"]

    def test_script_runs_the_commands_of_the_readme(self) -> None:
        shown = subprocess.run(
            ["bash", CI_SCRIPT, "--show"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        assert shown == readme_test_block((ROOT / "README.md").read_text())
        assert shown == ["pip install -e '.[dev]'", "pytest -n 3"]

    @pytest.mark.parametrize(
        ("readme", "expected"),
        [
            ("## Tests\n```bash\none\ntwo\n```\n", ["one", "two"]),
            ("```bash\nno\n```\n## Tests\ntext\n\n```bash\nyes\n```\n```bash\nno\n```\n", ["yes"]),
            ("## Tests\n```text\nno\n```\n```bash\nyes\n```\n## More\n", ["yes"]),
        ],
    )
    def test_script_finds_the_block(self, tmp_path: Path, readme: str, expected: list[str]) -> None:
        (tmp_path / "README.md").write_text(readme)
        script = tmp_path / ".ci" / "run"
        script.parent.mkdir()
        script.write_text(CI_SCRIPT.read_text())
        shown = subprocess.run(
            ["bash", script, "--show"], check=True, capture_output=True, text=True
        )
        assert shown.stdout.splitlines() == expected == readme_test_block(readme)

    def test_script_stops_when_the_readme_has_no_such_block(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("## Tests\nnone\n## Other\n```bash\nno\n```\n")
        script = tmp_path / ".ci" / "run"
        script.parent.mkdir()
        script.write_text(CI_SCRIPT.read_text())
        answer = subprocess.run(["bash", script], check=False, capture_output=True, text=True)
        assert answer.returncode == 1
        assert answer.stderr == "README.md has no bash block under the heading '## Tests'\n"

    def test_pre_commit_runs_the_same_tools(self) -> None:
        config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
        entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
        linters = ["ruff check", "ruff format", "pyright"]
        assert [e.split(" --")[0] for e in entries] == linters
        script = CI_SCRIPT.read_text()
        assert all(re.search(rf"^{linter}\b", script, re.MULTILINE) for linter in linters)


class TestPythonVersions:
    @pytest.fixture
    def tested(self, ci_job: dict[str, Any]) -> list[str]:
        return ci_job["strategy"]["matrix"]["python-version"]

    def test_pyproject_allows_what_is_tested(
        self, pyproject: dict[str, Any], tested: list[str]
    ) -> None:
        minors = [int(version.removeprefix("3.")) for version in tested]
        assert minors == list(range(minors[0], minors[-1] + 1))
        assert pyproject["project"]["requires-python"] == f">=3.{minors[0]},<3.{minors[-1] + 1}"

    def test_classifiers(self, pyproject: dict[str, Any], tested: list[str]) -> None:
        prefix = "Programming Language :: Python :: "
        classifiers = pyproject["project"]["classifiers"]
        assert [c.removeprefix(prefix) for c in classifiers if c.startswith(prefix)] == tested

    def test_pixi(self, pixi: dict[str, Any], pyproject: dict[str, Any]) -> None:
        assert pixi["dependencies"]["python"] == pyproject["project"]["requires-python"]

    def test_type_checker_assumes_the_oldest(
        self, pyproject: dict[str, Any], tested: list[str]
    ) -> None:
        assert pyproject["tool"]["pyright"]["pythonVersion"] == tested[0]


class TestSlurm:
    def test_tables_are_named_after_gpu_types(self) -> None:
        from academic_pretraining.gpus import GPUS

        assert set(read_toml("slurm.toml")["slurm"]["gpus"]) <= set(GPUS) - {"cpu"}

    def test_gpu_tables_say_what_to_ask_slurm_for(self) -> None:
        tables = read_toml("slurm.toml")["slurm"]["gpus"]
        assert all(table["gres"].startswith("gpu") for table in tables.values())
        assert all("constraint" in table for table in tables.values())

    def test_says_that_it_is_not_read_yet(self) -> None:
        assert "`--slurm` is not available yet" in (ROOT / "slurm.toml").read_text()


class TestProject:
    def test_license(self, pyproject: dict[str, Any]) -> None:
        text = (ROOT / "LICENSE").read_text()
        assert pyproject["project"]["license"] == "MIT"
        assert text.startswith("MIT License\n\nCopyright (c) 2026 the academic-pretraining authors")

    def test_every_package_is_installed(self, pyproject: dict[str, Any]) -> None:
        table = pyproject["tool"]["setuptools"]
        listed = set(table["packages"])
        found = {
            ".".join(folder.relative_to(top).parts)
            for top, pattern in ((ROOT / "src", "*"), (ROOT, "experiments"))
            for package in top.glob(pattern)
            for folder in (package, *package.rglob("*"))
            if any(folder.glob("*.py"))
        }
        assert found == listed

    def test_changelog_names_the_version(self, pyproject: dict[str, Any]) -> None:
        assert pyproject["project"]["version"] in (ROOT / "CHANGELOG.md").read_text()
