"""One rank: trains each case to its end, and again from a checkpoint on the way.

`resume.py FOLDER`: each folder in it that holds case.json is a case, NAME of the twin and fields
of TrainingArguments; its `whole` comes to hold the checkpoints of the training, and its `resumed`
those of one that went on from the first of these. A rank on which a case fails writes errorN.txt
there, and the next case follows.
"""

import gc
import json
import os
import runpy
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from twins import twin

from academic_pretraining import models

TRAINING = Path(__file__).resolve().parents[2] / "scripts" / "training.py"


def main(folder: Path) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    train = runpy.run_path(str(TRAINING))["train"]
    for path in sorted(folder.glob("*/case.json")):
        try:
            twice(train, path)
        except Exception:
            traceback.print_exc()
            (path.parent / f"error{dist.get_rank()}.txt").write_text(traceback.format_exc())
    dist.destroy_process_group()


def twice(train: Callable[..., Any], path: Path) -> None:
    """Train to the end, and again from half-way on."""
    case = json.loads(path.read_text())
    models.MODELS = {case["model"]: twin(case["model"])}
    whole, resumed = (path.parent / name for name in ("whole", "resumed"))
    for output in (whole, resumed):
        first = None
        if output == resumed:
            first = resumed / f"checkpoint-{case['fields']['save_steps']}"
            if dist.get_rank() == 0:
                shutil.copytree(whole / first.name, first)
            dist.barrier()
        before = dict(os.environ)
        try:
            train(
                case["fields"] | {"output_dir": str(output)},
                case["model"],
                {"attention": "eager"},
                source=path,
                checkpoint=first,
            )
            dist.barrier()
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            os.environ.clear()
            os.environ.update(before)
            torch.compiler.reset()
            gc.collect()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
