"""Measure chosen methods of a grid on this machine, as scripts/benchmark.py measures all of them.

`python benchmarks/chosen_methods.py --model pythia-160m --only free-lunch "free-lunch + ZeRO-1"
[--gpus-per-node N]` adds to the workspace (`TANGO_WORKSPACE_DIR`, else tango_workspace/), for
machines that are lent for minutes. Labels are those of `benchmark.py --cmd dry-run`. In an empty
workspace and followed by prediction_accuracy.py, it measures and trains on the same card.
"""

import argparse
import dataclasses
import functools
import os
import sys
from pathlib import Path

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.gpus import detect_hardware
from academic_pretraining.methods import MethodSpace
from academic_pretraining.models import get_model
from academic_pretraining.occupancy import PATIENCE_SECONDS, gpus_alone
from experiments.report import Progress
from experiments.sweep import sweep


def main() -> int:
    """Measure what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--only", nargs="+", required=True, help="labels of methods")
    parser.add_argument("--gpus-per-node", type=int)
    options = parser.parse_args()
    hardware = detect_hardware(os.environ)
    if options.gpus_per_node:
        hardware = dataclasses.replace(hardware, gpus_per_node=options.gpus_per_node)
    recipe = get_model(options.model)
    methods = {
        method.label: method
        for method, reasons in grid(hardware, recipe, MethodSpace.ALL)
        if not reasons
    }
    if unknown := sorted(set(options.only) - set(methods)):
        parser.error(f"no method of this grid: {', '.join(unknown)}; it has {', '.join(methods)}")
    configs = [
        TrainingConfig(hardware=hardware, recipe=recipe, method=methods[label])
        for label in options.only
    ]
    progress = Progress()
    alone = functools.partial(
        gpus_alone,
        hardware,
        os.environ,
        patience_seconds=PATIENCE_SECONDS,
        on_wait=progress.waits,
    )
    workspace = Path(os.environ.get("TANGO_WORKSPACE_DIR") or "tango_workspace")
    end = sweep(configs, workspace, Effort(), progress, alone, ahead=len(configs) > 1)
    for label, error in end.failures.items():
        print(f"no result for {label}: {error}", file=sys.stderr)
    return 1 if end.failures else 0


if __name__ == "__main__":
    sys.exit(main())
