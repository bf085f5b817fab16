"""Checkpoints of a training: which are whole, and whether one holds every weight."""

import contextlib
import json
import os
import platform
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from academic_pretraining.errors import (
    ILL_SHAPED,
    InvalidConfigError,
    InvalidFileError,
    one_line,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the Trainer writes last of its own, and what is written when every rank is done.
STATE = "trainer_state.json"
MARK = "complete.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: its folder.
        step: optimizer steps that were done.
        epoch: passes over the data that were done.
    """

    path: Path
    step: int
    epoch: float

    def why_over(self, fields: Mapping[str, Any], stop_after_steps: int | None) -> str:
        """Say that a training with these arguments is over, if it is; else nothing."""
        # Defaults of TrainingArguments.
        steps, epochs = fields.get("max_steps", -1), fields.get("num_train_epochs", 3)
        if 0 < steps <= self.step:
            return f"the training is over ({self.step:,} of {steps:,} steps)"
        if steps <= 0 and epochs <= self.epoch:
            return f"the training is over ({self.epoch:g} of {epochs:g} epochs)"
        if stop_after_steps and stop_after_steps <= self.step:
            return (
                f"the training is at step {self.step:,}: --stop-after-steps is {stop_after_steps:,}"
            )
        return ""


def choose(output_dir: Path, *, resume: bool) -> Checkpoint | None:
    """Find the checkpoint that a training goes on from, or make sure that it begins alone.

    It goes on from the newest one that is whole, and begins where none is; which newer ones are
    not is said on stderr.

    Raises:
        InvalidConfigError: there is none, or there are some though it is to begin.
        InvalidFileError: checkpoints cannot be written there.
    """
    try:
        there = next(path for path in (output_dir, *output_dir.parents) if path.exists())
        output_dir.resolve()
        found = _newest_first(output_dir)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidFileError(
            f"{output_dir} cannot be a folder for checkpoints ({error}): name another"
        ) from error
    chosen, left_out = _newest_whole(found)
    if resume and not chosen:
        only = f"whole checkpoint, only {', '.join(left_out)}" if left_out else "checkpoint"
        raise InvalidConfigError(
            f"--resume was given, but {output_dir} holds no {only}: leave it out to begin"
        )
    if chosen and not resume:
        raise InvalidConfigError(
            f"{output_dir} holds {chosen.path.name}: give --resume to go on, or name another folder"
        )
    if left_out:
        begins = f"going on from {chosen.path.name}" if chosen else "beginning anew"
        print(one_line(f"{begins}, without {', '.join(left_out)}"), file=sys.stderr)
    if not there.is_dir():
        raise InvalidFileError(
            f"{output_dir} cannot be a folder for checkpoints, for it is a file or below one: "
            "name another"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidFileError(
            f"{output_dir} cannot be a folder for checkpoints, for {there} may not be written: "
            "name another"
        )
    return chosen


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder; where nothing comes into it, it goes again.

    Raises:
        InvalidFileError: it cannot be made.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidFileError(f"{folder} cannot be made ({error}): name another folder") from error
    try:
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()


def mark(checkpoint: Path) -> None:
    """Say that every rank is done with a checkpoint, and what it holds then."""
    sizes = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and not path.name.startswith(MARK)
    }
    # Where every node saves into one folder, several ranks write it.
    partial = checkpoint / f"{MARK}.{platform.node()}.{os.getpid()}"
    partial.write_text(json.dumps(sizes, indent=2) + "\n")
    partial.replace(checkpoint / MARK)


def unmark(checkpoint: Path) -> None:
    """Have one that is about to be written over not taken for whole before it is."""
    for name in (MARK, STATE):
        (checkpoint / name).unlink(missing_ok=True)


def refuse_lost_states(checkpoint: Path) -> None:
    """Refuse to go on without the states of optimizer and schedule.

    The Trainer would begin them anew without a word. DeepSpeed itself looks for what it wrote.

    Raises:
        InvalidFileError: the checkpoint lacks one of them.
    """
    # FSDP writes a folder, `optimizer_0`, and all else `optimizer.pt`.
    for name, pattern in (("optimizer", "optimizer*"), ("learning-rate schedule", "scheduler.pt")):
        if not any(checkpoint.glob(pattern)):
            why = "with save_only_model or by another way of sharding"
            if any(checkpoint.glob("global_step*")):
                why = "by DeepSpeed"
            raise InvalidFileError(
                f"{checkpoint} lacks the state of the {name}, for it was saved {why}: go on with "
                "the arguments that it was saved with, or begin again in another folder"
            )


def refuse_lost_weights(checkpoint: Path, model: "PreTrainedModel") -> None:
    """Refuse to go on with weights as they were drawn, of which the Trainer only logs a warning.

    A file of weights that DeepSpeed or FSDP wrote is for them to check, which they do.

    Raises:
        InvalidFileError: the checkpoint lacks a weight, and any that it is tied to.
    """
    names = _saved_names(checkpoint)
    tensors = model.state_dict(keep_vars=True)
    found = {id(tensor) for name, tensor in tensors.items() if name in names}
    lost = [name for name, tensor in tensors.items() if id(tensor) not in found]
    if lost:
        raise InvalidFileError(
            f"{checkpoint} lacks {len(lost)} of the model's {len(tensors)} weights, as {lost[0]}, "
            "for it is another model's or was saved under the hub's names: begin again in another "
            "folder"
        )


def _newest_first(output_dir: Path) -> list[Path]:
    """Folders that the Trainer would take for checkpoints."""
    found = {
        int(name.group(1)): path
        for path in (output_dir.iterdir() if output_dir.is_dir() else ())
        if (name := re.fullmatch(r"checkpoint-([0-9]{1,18})", path.name)) and path.is_dir()
    }
    return [found[step] for step in sorted(found, reverse=True)]


def _newest_whole(newest_first: list[Path]) -> tuple[Checkpoint | None, list[str]]:
    """Look for a whole one; with it, newer ones, each with the reason why it is none."""
    left_out = []
    for path in newest_first:
        try:
            return _whole(path), left_out
        except (OSError, *ILL_SHAPED) as error:
            left_out.append(f"{path.name} ({error})")
    return None, left_out


def _whole(path: Path) -> Checkpoint:
    """Read how far a checkpoint is.

    Raises:
        ValueError: it is not whole.
        OSError: it cannot be read.
    """
    if not (path / STATE).exists():
        raise ValueError(f"it lacks {STATE}")
    try:
        state = json.loads((path / STATE).read_text())
        checkpoint = Checkpoint(
            path=path, step=int(state["global_step"]), epoch=float(state["epoch"] or 0)
        )
    except ILL_SHAPED as error:
        raise ValueError(f"its {STATE} is damaged") from error
    for name in _damaged(path):
        there = (path / name).exists()
        raise ValueError(f"its {name} is damaged" if there else f"it lacks {name}")
    return checkpoint


def _damaged(path: Path) -> Iterator[str]:
    """Name files that are missing or too short."""
    if (path / MARK).exists():
        sizes = json.loads((path / MARK).read_text())
        for name, size in sizes.items():
            # At least, for over a network the writer of the mark may see a file late.
            if not (path / name).is_file() or (path / name).stat().st_size < size:
                yield name
        return
    # Of an earlier version, or killed just before the mark: the Trainer writes its state last.
    for file in sorted(path.rglob("*.pt*")):
        if file.suffix in (".pt", ".pth") and not zipfile.is_zipfile(file):
            yield str(file.relative_to(path))


def _saved_names(checkpoint: Path) -> set[str]:
    """Read the names of weights off a file of safetensors, or the index of several."""
    index = checkpoint / "model.safetensors.index.json"
    if index.exists():
        return set(json.loads(index.read_text())["weight_map"])
    with (checkpoint / "model.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return set(json.loads(file.read(min(size, os.fstat(file.fileno()).st_size))))
