"""What a Trainer needs before it loads a checkpoint."""

import torch
from transformers import Trainer


def ready_to_load(trainer: Trainer) -> None:
    """Let FSDP2's optimizer be loaded in fp16, and plain data parallelism's on CPUs.

    torch steps an optimizer once to have a state that it can load into. Under accelerate that goes
    through the gradient scaler, which has no scale before its first loss; transformers 5.17 loads
    it after the optimizer, where accelerate's own loading does so before. The scale that is made
    here is the initial one, and the checkpoint's takes its place.

    Several workers load optimizers to their own devices, which for accelerate 1.15 is `cpu:0`;
    `torch.load` knows a CPU by no number. The attribute behind `device` is private;
    tests/contract/test_resume.py fails without this.
    """
    if trainer.args.device.type == "cpu":
        trainer.args._setup_devices = torch.device("cpu")
    scaler = trainer.accelerator.scaler
    if trainer.args.fsdp and scaler is not None:
        scaler.scale(torch.zeros((), device=trainer.args.device))
