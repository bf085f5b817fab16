"""Train a small model on one rank, let go of it, and print what of it is still there.

A program of its own, because what is left would be left to other tests. Its arguments are a
sharding method, a folder, and `helped`, `unhelped` by `_empty_zero_3`, or `changed`: DeepSpeed
without what that asks for.
"""

import gc
import json
import sys
import weakref
from typing import Any

import torch
from deepspeed.runtime.zero import parameter_offload
from twins import twin

from academic_pretraining.benchmarking import let_go, probe
from academic_pretraining.benchmarking.probes import Probe, Purpose
from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding


def main(sharding: str, folder: str, how: str) -> None:
    if how == "unhelped":
        let_go._empty_zero_3 = lambda: None
    if how == "changed":
        del parameter_offload.FWD_MODULE_STACK
    # As a session does, so that the collector does not tell everything.
    gc.freeze()
    torch.distributed.init_process_group("gloo")
    config = TrainingConfig(
        hardware=Hardware(num_nodes=1, gpus_per_node=2, gpu_type="cpu"),
        recipe=twin("pythia-14m"),
        method=Method(sharding=Sharding(sharding)),
    )
    asked = Probe(
        purpose=Purpose.MEMORY,
        micro_batch_size=1,
        high=2,
        high_steps=2,
        compile=False,
        deadline_seconds=60.0,
    )
    trainer, timer = probe._build(config, asked, output_dir=folder, cuda=False)
    trainer.train()
    engine: Any = trainer.model_wrapped
    parts = {
        "model": weakref.ref(engine.module),
        "engine": weakref.ref(engine),
        "optimizer": weakref.ref(engine.optimizer),
    }
    let_go.let_go(trainer)
    del trainer, timer, engine
    gc.collect()
    print("FOUND", json.dumps([name for name, part in parts.items() if part() is not None]))


if __name__ == "__main__":
    main(*sys.argv[1:])
