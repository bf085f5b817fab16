"""Fields of TrainingArguments that come from a file: what they must be, before anything starts."""

import contextlib
import dataclasses
import os
import tempfile
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from transformers import Trainer, TrainingArguments, get_scheduler

from academic_pretraining.benchmarking import field_rules
from academic_pretraining.errors import InvalidFileError

_ADVICE = "write the file with scripts/to_training_arguments.py"

# TrainingArguments take these as they are, and the training fails later or never ends.
_AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "save_total_limit",
    "ddp_timeout",
)
_BELOW_ONE = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
# What timeouts and counters hold, what NumPy takes for a seed, and more than any batch here.
_MOST = 2**31 - 1
_NOT_ABOVE = {
    **dict.fromkeys(("seed", "data_seed"), 2**32 - 1),
    "per_device_train_batch_size": 2**20,
    "per_device_eval_batch_size": 2**20,
    "gradient_accumulation_steps": 2**20,
}
# Where a launcher or a scheduler has set these, TrainingArguments wait for its other processes.
_LAUNCHERS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_", "PMI_", "PMIX_"),
    *("OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "ACCELERATE_"),
)
_NOT_BELOW = {"max_steps": -1, "local_rank": -1}


def check_fields(fields: dict[str, Any], path: Path) -> None:
    """Find out whether a file's fields are those of TrainingArguments.

    What only the target machine can say, such as whether it computes in bf16, is left to it.

    Raises:
        InvalidFileError: they are not.
    """
    kinds = typing.get_type_hints(TrainingArguments)
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    if unknown := sorted(set(fields) - known):
        raise InvalidFileError(
            f"{path} holds {unknown[0]!r}, which is no field of TrainingArguments: {_ADVICE}"
        )
    for name, value in fields.items():
        if wrong := _why_wrong(name, value, kinds[name]):
            raise _wrong(path, name, value, wrong)
    if odd := field_rules.why_wrong_together(fields):
        raise _wrong(path, odd[0], fields[odd[0]], odd[1])
    try:
        # Looks for one that can be written.
        tempfile.gettempdir()
    except OSError as error:
        raise InvalidFileError(
            f"there is no folder for temporary files ({error}): name one with TMPDIR"
        ) from error
    here = {"use_cpu": True, "tf32": None, "deepspeed": None, "ddp_backend": None}
    with _no_trace(), tempfile.TemporaryDirectory() as folder:
        arguments = build(fields | here | {"output_dir": folder}, path)
        try:
            Trainer.get_optimizer_cls_and_kwargs(arguments)
            get_scheduler(
                arguments.lr_scheduler_type,
                torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1),
                num_warmup_steps=0,
                num_training_steps=1,
                scheduler_specific_kwargs=typing.cast(Any, arguments.lr_scheduler_kwargs),
            )
        except Exception as error:
            raise InvalidFileError(_refusal("the Trainer refuses", path, error)) from error


def build(fields: dict[str, Any], path: Path) -> TrainingArguments:
    """Make TrainingArguments of a file's fields.

    Raises:
        InvalidFileError: they are refused.
    """
    try:
        return TrainingArguments(**fields)
    except Exception as error:
        raise InvalidFileError(_refusal("TrainingArguments refuse", path, error)) from error


def _wrong(path: Path, name: str, value: Any, must: str) -> InvalidFileError:
    return InvalidFileError(f"{path} says {name} is {value!r}, but it must be {must}: {_ADVICE}")


def _refusal(who: str, path: Path, error: Exception) -> str:
    return f"{who} {path} ({type(error).__name__}: {error}): {_ADVICE}"


def _why_wrong(name: str, value: Any, kind: Any) -> str:
    of_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = typing.get_args(kind) if of_union else (kind,)
    if value is None and type(None) in kinds:
        return ""
    if float in kinds or int in kinds:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "a number"
        if float not in kinds and not isinstance(value, int):
            return "a whole number"
        return _why_out_of_range(name, value) or field_rules.why_wrong(name, value)
    if kinds == (bool,) and not isinstance(value, bool):
        return "true or false"
    origins = {typing.get_origin(kind) or kind for kind in kinds}
    if dict in origins and (wrong := field_rules.an_object(value)):
        return wrong
    if list in origins and not isinstance(value, str) and (wrong := field_rules.texts(value)):
        return wrong
    # FSDP is switched by a boolean that its annotation does not know.
    plain = {bool, str, type(None)}
    if set(kinds) <= plain and name != "fsdp" and type(value) not in kinds:
        return " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
    return field_rules.why_wrong(name, value)


def _why_out_of_range(name: str, value: float) -> str:
    least = _NOT_BELOW.get(name, 1 if name in _AT_LEAST_ONE else 0)
    if value < least:
        return f"at least {least}"
    if name in _BELOW_ONE and value >= 1:
        return "below 1"
    most = _NOT_ABOVE.get(name, _MOST)
    return "" if value <= most else f"at most {most:,}"


@contextlib.contextmanager
def _no_trace() -> Iterator[None]:
    """Take back what building TrainingArguments leaves behind, and hide a launcher from it."""
    before = dict(os.environ)
    known = dict(AcceleratorState._shared_state)
    for name in before:
        if name.startswith(_LAUNCHERS):
            del os.environ[name]
    try:
        yield
    finally:
        if not known:
            AcceleratorState._reset_state(reset_partial_state=True)
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
