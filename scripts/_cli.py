"""What the scripts share: choices from the tables, hardware flags, errors in one line."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from academic_pretraining.errors import HardwareMismatchError, one_line
from academic_pretraining.gpus import GPUS, Hardware, detect_hardware
from academic_pretraining.methods import Sharding
from academic_pretraining.models import MODELS
from experiments import command_line


def _optional(names: Iterable[str]) -> Any:
    """Make the type of a flag that is one of these names or not given.

    Of `Literal[...] | None` tyro makes a set: its choices come in any order, with 'None' as one.
    """
    names = tuple(names)
    return Annotated[
        str | None,
        tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{{{','.join(names)}}}",
            instance_from_str=lambda given: given[0],
            is_instance=lambda value: value is None or value in names,
            str_from_instance=lambda value: [f"{value}"],
            choices=names,
        ),
    ]


if TYPE_CHECKING:
    import polars as pl

    GpuName = str
    ModelName = str
    ShardingName = str
    GpuNameOrNone = str | None
    ModelNameOrNone = str | None
else:
    GpuName = Literal[tuple(GPUS)]
    ModelName = Literal[tuple(MODELS)]
    ShardingName = Literal[tuple(sharding.value for sharding in Sharding)]
    GpuNameOrNone = _optional(GPUS)
    ModelNameOrNone = _optional(MODELS)


def run(main: Callable[..., int | None], *, stopped: str = "run the same command again") -> None:
    """Run a script's main on the command line's arguments and exit with its status.

    Args:
        main: what the script does.
        stopped: what to say when it was interrupted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(command_line.answer(tyro.cli, main, sys.argv[1:], stopped=stopped))


def is_given(*flags: str) -> bool:
    """Whether one of these stands on the command line, also with its default value."""
    names = (argument.partition("=")[0].replace("_", "-") for argument in sys.argv[1:])
    return any(name in flags or name.replace("--no-", "--", 1) in flags for name in names)


def workspace_dir() -> Path:
    """Folder of results: `TANGO_WORKSPACE_DIR`, else `tango_workspace/`."""
    return command_line.workspace_dir(os.environ)


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; `None` where it is none, and no line too long."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def hardware_from(
    num_nodes: int | None, gpus_per_node: int | None, gpu_type: str | None
) -> Hardware:
    """Take the flags that were given and this machine for the others; all of it for none.

    A newcomer whose GPU is in no table is told so and tries the CPU.
    """
    if gpu_type is None:
        nothing_given = num_nodes is None and gpus_per_node is None
        try:
            detected = detect_hardware(os.environ)
        except HardwareMismatchError as error:
            if not nothing_given:
                raise
            print(f"warning: {error}; trying things out on the CPU", file=sys.stderr)
            detected = Hardware(num_nodes=1, gpus_per_node=1, gpu_type="cpu")
        if nothing_given:
            return detected
        gpu_type = detected.gpu_type
    return Hardware(
        num_nodes=1 if num_nodes is None else num_nodes,
        gpus_per_node=1 if gpus_per_node is None else gpus_per_node,
        gpu_type=gpu_type,
    )


def records() -> list[dict[str, Any]]:
    """Read all records of the workspace; what cannot be read is named on stderr."""
    from experiments.workspace import read_records

    readable, unreadable = read_records(workspace_dir())
    for result in unreadable:
        warning = f"warning: {result.path} is left out: {result.reason}"
        print(one_line(warning), file=sys.stderr)
    return readable


def results(hardware: Hardware, model: str, also: Collection[str] = ()) -> "pl.DataFrame":
    """Read the workspace, as `records` does, and gather the results for one hardware and model.

    Args:
        hardware: on which.
        model: what is trained.
        also: as for `academic_pretraining.results.frame`.
    """
    from academic_pretraining.records import about
    from academic_pretraining.results import frame

    return frame(about(records(), hardware, model), also)


def say(*lines: str) -> None:
    """Print what is beside a result on stderr, so that the result stands alone."""
    for line in lines:
        print(one_line(line), file=sys.stderr)


def say_other_versions(rows: "pl.DataFrame") -> None:
    """Say on stderr where these results are of other versions than are installed.

    Those that are marked for it, beside newer ones, say so themselves.
    """
    from experiments.identity import other_versions

    for row in rows.filter("current_libraries").head(1).iter_rows(named=True):
        if said := other_versions(row["libraries"], row["model"]):
            say(said)
