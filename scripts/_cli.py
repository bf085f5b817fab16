"""What the scripts share: choices from the tables, errors in one line, results as tables."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from academic_pretraining.errors import AcademicPretrainingError
from academic_pretraining.gpus import GPUS
from academic_pretraining.models import MODELS

if TYPE_CHECKING:
    import polars as pl

    GpuName = str
    ModelName = str
else:
    GpuName = tyro.extras.literal_type_from_choices(list(GPUS))
    ModelName = tyro.extras.literal_type_from_choices(list(MODELS))


def run(main: Callable[..., int | None]) -> None:
    """Run a script's main on the command line's arguments and exit with its status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(tyro.cli(main))
    except AcademicPretrainingError as error:
        sys.exit(_fail(str(error)))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("stopped: what was measured is kept, run the same command to go on", file=sys.stderr)
        sys.exit(130)


def workspace_dir() -> Path:
    """Folder of results: `TANGO_WORKSPACE_DIR`, else `tango_workspace/`."""
    return Path(os.environ.get("TANGO_WORKSPACE_DIR") or "tango_workspace")


def results() -> "pl.DataFrame":
    """Read all results of the workspace; what cannot be read is named on stderr."""
    from academic_pretraining.results import frame
    from experiments.workspace import read_records

    records, unreadable = read_records(workspace_dir())
    for result in unreadable:
        print(f"warning: {result.path} is left out: {result.reason}", file=sys.stderr)
    return frame(records)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
