"""Where the wall time of measured grids went.

`python benchmarks/grid_time.py [--output FILE.csv]` reads the workspace (`TANGO_WORKSPACE_DIR`,
else tango_workspace/): one row a setting, seconds by phase, and their sums by model.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import polars as pl

from academic_pretraining.records import config_of
from experiments.command_line import workspace_dir
from experiments.workspace import read_records


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    workspace = workspace_dir(os.environ)
    table = pl.DataFrame([row(record) for record in read_records(workspace)[0]])
    if options.output:
        table.write_csv(options.output)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, fmt_str_lengths=60):
        print(table)
        hardware = ["model", "gpu_type", "gpus_per_node"]
        print(table.group_by(hardware).agg(pl.len(), pl.col(pl.Float64).sum()).sort(hardware))


def row(record: dict[str, Any]) -> dict[str, Any]:
    """Describe one measurement; what no phase accounts for is `other`."""
    config = config_of(record)
    seconds = dict(record["measurement"]["seconds"])
    whole = seconds.pop("all")
    return {
        "model": config.recipe.name,
        "gpu_type": config.hardware.gpu_type,
        "gpus_per_node": config.hardware.gpus_per_node,
        "method": config.method.label,
        "sessions": record["measurement"]["sessions"],
        **{name: float(value) for name, value in seconds.items()},
        "other": whole - sum(seconds.values()),
        "all": float(whole),
    }


if __name__ == "__main__":
    main()
