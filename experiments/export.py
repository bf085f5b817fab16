"""Exporting a setting: its TrainingArguments, and beside them what those cannot hold."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from academic_pretraining.config import BatchPlan, TrainingConfig, config_to_dict
from academic_pretraining.errors import InvalidFileError
from academic_pretraining.training_arguments import to_json, training_arguments_fields


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
    if setting.get("arguments_sha256") != hashlib.sha256(arguments.read_bytes()).hexdigest():
        setting["prediction"] = None
    return setting


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidFileError: there is none.
    """
    advice = "write one with scripts/to_training_arguments.py"
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidFileError(f"{path} is not a readable JSON file ({error}): {advice}") from error
    if not isinstance(data, dict):
        raise InvalidFileError(f"{path} holds no JSON object: {advice}")
    return data


def prediction(
    records: Iterable[dict[str, Any]], config: TrainingConfig, plan: BatchPlan
) -> dict[str, Any] | None:
    """Find the newest measurement of exactly this setting and plan; `None` if there is none."""
    wanted = config_to_dict(config)
    found = None
    newest = float("-inf")
    for record in records:
        stored = record["config"]
        same = all(stored[part] == wanted[part] for part in ("hardware", "method"))
        if not same or stored["recipe"]["name"] != config.recipe.name:
            continue
        for timing in record["measurement"]["timings"]:
            batch = (timing["micro_batch_size"], timing["gradient_accumulation_steps"])
            if (
                batch == (plan.micro_batch_size, plan.gradient_accumulation_steps)
                and record["measured_at"] > newest
            ):
                newest = record["measured_at"]
                found = {
                    "step_seconds": timing["step_seconds"],
                    "step_seconds_standard_error": timing["step_seconds_standard_error"],
                    "peak_bytes": timing["peak_bytes"],
                    "mfu": timing["mfu"],
                    "compile": record["measurement"]["compile"],
                }
    return found


def export(
    output: Path, config: TrainingConfig, plan: BatchPlan, predicted: dict[str, Any] | None
) -> None:
    """Write a setting for scripts/training.py.

    Args:
        output: file for the TrainingArguments.
        config: what trains.
        plan: how its batch is divided.
        predicted: what `prediction` found.

    Raises:
        InvalidFileError: a file cannot be written.
    """
    # A compilation that failed when it was measured is not asked for in training.
    failed = predicted is not None and predicted["compile"] == "failed"
    fields = training_arguments_fields(config, plan, torch_compile=False if failed else None)
    text = to_json(fields)
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
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
        setting_path(output).write_text(to_json(setting))
    except OSError as error:
        raise InvalidFileError(
            f"{output} cannot be written ({error}): name another file"
        ) from error
