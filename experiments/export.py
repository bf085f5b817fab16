"""Exporting a setting: its TrainingArguments, and beside them what those cannot hold."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from academic_pretraining.config import BatchPlan, TrainingConfig, config_to_dict
from academic_pretraining.errors import InvalidFileError
from academic_pretraining.gpus import Hardware
from academic_pretraining.results import is_current
from academic_pretraining.training_arguments import to_json, training_arguments_fields

_ADVICE = "write one with scripts/to_training_arguments.py"


def setting_path(output: Path) -> Path:
    """Where the rest of an exported setting stands: `F.setting.json` beside `F.json`."""
    return output.with_suffix(".setting.json")


def read_setting(arguments: Path) -> dict[str, Any]:
    """Read what `export` wrote beside a file of TrainingArguments; empty where nothing is.

    The prediction is left out where the arguments were edited since: it is not theirs.

    Raises:
        InvalidFileError: it is there, but no JSON object.
    """
    path = setting_path(arguments)
    if not path.exists():
        return {}
    setting = read_json(path)
    hardware = setting.get("hardware")
    types = {field.name: field.type for field in fields(Hardware)}
    if not isinstance(hardware, dict) or {k: type(v) for k, v in hardware.items()} != types:
        raise InvalidFileError(f"{path} does not say for which hardware it is: {_ADVICE}")
    if setting.get("arguments_sha256") != hashlib.sha256(arguments.read_bytes()).hexdigest():
        setting["prediction"] = None
    return setting


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidFileError: there is none.
    """
    try:
        data = json.loads(path.read_text())
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
    """Find the newest measurement of exactly this setting and plan; `None` if there is none.

    Where the newest one saw the compilation fail, an older compiled timing does not count.
    """
    records = _measured(records, config)
    failed = compilation_failed(records, config)
    for record in records:
        for timing in record["measurement"]["timings"]:
            if failed and record is not records[0] and timing["compiled"]:
                continue
            batch = (timing["micro_batch_size"], timing["gradient_accumulation_steps"])
            if batch == (plan.micro_batch_size, plan.gradient_accumulation_steps):
                figures = ("step_seconds", "step_seconds_standard_error", "peak_bytes", "mfu")
                return {name: timing[name] for name in (*figures, "compiled")}
    return None


def compilation_failed(records: Iterable[dict[str, Any]], config: TrainingConfig) -> bool:
    """Whether the newest measurement of this setting saw its compilation fail."""
    newest = next(iter(_measured(records, config)), None)
    return newest is not None and newest["measurement"]["compile"] == "failed"


def _measured(records: Iterable[dict[str, Any]], config: TrainingConfig) -> list[dict[str, Any]]:
    """Choose the records of a setting, the newest first."""
    wanted = config_to_dict(config)
    found = [
        record
        for record in records
        if all(record["config"][part] == wanted[part] for part in ("hardware", "method"))
        and record["config"]["recipe"]["name"] == config.recipe.name
        and is_current(record["config"]["recipe"])
    ]
    return sorted(found, key=lambda record: record["measured_at"], reverse=True)


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
        records: what was measured: a compilation that failed then is not asked for in training.

    Returns:
        what was predicted for exactly this setting, if anything was.

    Raises:
        InvalidFileError: a file cannot be written.
    """
    records = list(records)
    predicted = prediction(records, config, plan)
    compiles = predicted["compiled"] if predicted else None
    if predicted is None and compilation_failed(records, config):
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
        if output.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(output))
        output.parent.mkdir(parents=True, exist_ok=True)
        # The setting first, whole or not at all: arguments never stand beside another's setting.
        for path, content in ((setting_path(output), to_json(setting)), (output, text)):
            partial = path.with_name(path.name + ".partial")
            partial.write_text(content)
            partial.replace(path)
    except OSError as error:
        raise InvalidFileError(
            f"{output} cannot be written ({error}): name another file"
        ) from error
    return predicted
