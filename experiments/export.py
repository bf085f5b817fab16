"""Exporting a setting: its TrainingArguments, and beside them what those cannot hold."""

import contextlib
import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from academic_pretraining.benchmarking.storage import read_finite
from academic_pretraining.config import BatchPlan, TrainingConfig, config_to_dict
from academic_pretraining.errors import AcademicPretrainingError, InvalidFileError, one_line
from academic_pretraining.gpus import Hardware
from academic_pretraining.identity import has_current_arguments
from academic_pretraining.models import MODELS
from academic_pretraining.records import GIVEN_UP, LARGEST_FIGURE, about
from academic_pretraining.rows import ORDER, row_of
from academic_pretraining.training_arguments import to_json, training_arguments_fields
from experiments.strict_json import loads

_ENDING = ".setting.json"
_ADVICE = "write one with scripts/to_training_arguments.py"


def setting_path(output: Path) -> Path:
    """Where the rest of an exported setting stands: `F.setting.json` beside `F.json`, or `F`."""
    name = output.stem if output.suffix == ".json" else output.name
    return output.with_name(f"{name}{_ENDING}")


def read_setting(arguments: Path) -> dict[str, Any]:
    """Read what `export` wrote beside a file of TrainingArguments; empty where nothing is.

    The prediction is left out where the arguments were edited since: it is not theirs.

    Raises:
        InvalidFileError: it is there, but no JSON object.
    """
    path = setting_path(arguments)
    try:
        there = path.exists()
    except OSError as error:
        raise InvalidFileError(f"{path} cannot be looked for ({error}): {_ADVICE}") from error
    if not there:
        return {}
    setting = read_json(path)
    hardware = setting.get("hardware")
    types = {field.name: field.type for field in fields(Hardware)}
    if not isinstance(hardware, dict) or {k: type(v) for k, v in hardware.items()} != types:
        raise InvalidFileError(f"{path} does not say for which hardware it is: {_ADVICE}")
    try:
        Hardware(**hardware)
    except AcademicPretrainingError as error:
        raise InvalidFileError(f"{path} is for no hardware ({error}): {_ADVICE}") from error
    for name, value in setting.items():
        if name not in _SETTING:
            raise InvalidFileError(f"{path} holds {name!r}, which no setting has: {_ADVICE}")
        if not _SETTING[name](value):
            raise InvalidFileError(f"{path} says {name} is {value!r}, which is none: {_ADVICE}")
    if setting.get("arguments_sha256") != hashlib.sha256(arguments.read_bytes()).hexdigest():
        setting["prediction"] = None
    return setting


def warn_without(setting: dict[str, Any], arguments: Path) -> None:
    """Say on stderr what a file of TrainingArguments that stands alone leaves open."""
    if not setting:
        line = (
            f"warning: there is no {setting_path(arguments).name} beside {arguments}: attention "
            "and kernels are the default ones, whatever was measured, and no hardware is checked"
        )
        print(one_line(line), file=sys.stderr)


# What each part of a setting may be. Other kernels than these would be fetched from a hub and run.
_SETTING: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: isinstance(value, str) and value in MODELS,
    "attention": lambda value: value in (None, "eager", "sdpa"),
    "free_lunch": lambda value: isinstance(value, bool),
    "hardware": lambda value: True,
    "method": lambda value: isinstance(value, str),
    "arguments_sha256": lambda value: isinstance(value, str),
    "prediction": lambda value: True,
}


def is_prediction(found: object) -> bool:
    """Whether it predicts a step's time and memory, as `prediction` does."""
    if not isinstance(found, dict):
        return False
    figures = [found.get("step_seconds"), found.get("peak_bytes")]
    others = [found.get("mfu"), found.get("step_seconds_standard_error")]
    # An error of 0 is one, and what is not known is null.
    figures += [figure for figure in others if figure is not None and figure != 0]
    return all(
        isinstance(figure, int | float) and figure is not True and 0 < figure < LARGEST_FIGURE
        for figure in figures
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidFileError: there is none.
    """
    try:
        _refuse_folder(path)
        data = loads(read_finite(path, "export"))
    except (OSError, ValueError) as error:
        raise InvalidFileError(
            f"{path} is not a readable JSON file ({error}): {_ADVICE}"
        ) from error
    if not isinstance(data, dict):
        raise InvalidFileError(f"{path} holds no JSON object: {_ADVICE}")
    return data


def prediction(
    records: Iterable[dict[str, Any]], config: TrainingConfig, plan: BatchPlan
) -> dict[str, Any] | None:
    """Find the best measurement of exactly this setting and plan; `None` if there is none.

    Where the best one of the setting gave compilation up, a compiled timing of another one does
    not count.
    """
    records = _measured(records, config)
    given_up = gave_compilation_up(records, config)
    for record in records:
        # What was timed with and without compilation trains in the faster way.
        for timing in sorted(record["measurement"]["timings"], key=lambda t: t["step_seconds"]):
            if given_up and record is not records[0] and timing["compiled"]:
                continue
            batch = (timing["micro_batch_size"], timing["gradient_accumulation_steps"])
            if batch == (plan.micro_batch_size, plan.gradient_accumulation_steps):
                figures = ("step_seconds", "step_seconds_standard_error", "peak_bytes", "mfu")
                return {name: timing[name] for name in (*figures, "compiled")}
    return None


def gave_compilation_up(records: Iterable[dict[str, Any]], config: TrainingConfig) -> bool:
    """Whether the best measurement of this setting gave compilation up."""
    best = next(iter(_measured(records, config)), None)
    return best is not None and best["measurement"]["compile"] in GIVEN_UP


def _measured(records: Iterable[dict[str, Any]], config: TrainingConfig) -> list[dict[str, Any]]:
    """Choose the records of a setting, in the order of `results.frame`, the best first.

    Those of other library versions than the newest result for the same model and hardware are left
    out: they predict nothing any more.
    """
    wanted = config_to_dict(config)
    around = about(records, config.hardware, config.recipe.name)
    rows = [(row_of(record), record) for record in around]
    newest = max((row for row, _ in rows), key=lambda row: row["measured_at"], default=None)
    found = [
        (row, record)
        for row, record in rows
        if record["config"]["method"] == wanted["method"]
        and row["current_recipe"]
        and newest
        and row["libraries"] == newest["libraries"]
        and has_current_arguments(record)
    ]
    found.sort(key=lambda pair: [pair[0][name] for name in ORDER], reverse=True)
    return [record for _, record in found]


def export(
    output: Path,
    config: TrainingConfig,
    plan: BatchPlan,
    records: Iterable[dict[str, Any]],
) -> dict[str, Any] | None:
    """Write a setting for scripts/training.py.

    Args:
        output: file for the TrainingArguments.
        config: what trains.
        plan: how its batch is divided.
        records: what was measured: compilation that was given up then is not asked for in
            training.

    Returns:
        what was predicted for exactly this setting, if anything was.

    Raises:
        InvalidFileError: a file cannot be written.
    """
    records = list(records)
    predicted = prediction(records, config, plan)
    compiles = predicted["compiled"] if predicted else None
    if predicted is None and gave_compilation_up(records, config):
        compiles = False
    arguments = training_arguments_fields(config, plan, torch_compile=compiles)
    text = to_json(arguments)
    setting = {
        "model": config.recipe.name,
        "attention": config.attention,
        "free_lunch": config.method.free_lunch,
        "hardware": asdict(config.hardware),
        "method": config.method.label,
        "arguments_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "prediction": predicted,
    }
    try:
        _write(output, to_json(setting), text)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidFileError(
            f"{output} cannot be written ({error}): name another file"
        ) from error
    return predicted


def _write(output: Path, setting: str, arguments: str) -> None:
    """Write both files whole, the setting first, or nothing at all.

    Arguments never stand beside another's setting.
    """
    _refuse_folder(output)
    if output.name.endswith(_ENDING):
        raise OSError(errno.EINVAL, "it is the setting of another", str(output))
    other = output.with_suffix("") if output.suffix == ".json" else Path(f"{output}.json")
    if other.is_file():
        raise OSError(errno.EINVAL, f"its setting would be that of {other.name} too", str(output))
    # The setting would be put beside a device's name, as of /dev/stdout.
    if output.absolute().parent in (Path("/dev"), Path("/dev/fd")):
        raise OSError(errno.EINVAL, "it is a device", str(output))
    # What a link names is replaced, and not the link.
    contents = {setting_path(output).resolve(): setting, output.resolve(): arguments}
    for path in contents:
        _refuse_folder(path)
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
    new = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            _partial(path).write_text(content)
        for path in contents:
            _partial(path).replace(path)
    except BaseException:
        for path in contents:
            with contextlib.suppress(OSError, ValueError):
                _partial(path).unlink(missing_ok=True)
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
