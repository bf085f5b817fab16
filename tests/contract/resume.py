"""One rank: trains each case to its end, and again from a checkpoint on the way.

`resume.py FOLDER`: each folder in it that holds case.json is a case, NAME of the twin and fields
of TrainingArguments; its `whole` comes to hold the checkpoints of the training, and its `resumed`
those of one that went on from the first of these.
"""

import gc
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

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
            train(
                case["fields"] | {"output_dir": str(output)},
                case["model"],
                {"attention": "eager"},
                source=path,
                checkpoint=first,
            )
            dist.barrier()
            AcceleratorState._reset_state(reset_partial_state=True)
            os.environ.clear()
            os.environ.update(before)
            gc.collect()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
