"""Where and when faults happen in the workers of a session, and what they leave for the test."""

import os
import time
from pathlib import Path

import torch.distributed as dist

from academic_pretraining.benchmarking import probe
from academic_pretraining.benchmarking.build import build_model_for

_folder = Path()


def folder() -> Path:
    """Give the session's folder, once a probe has begun."""
    return _folder


def instead_of_a_probe(worker, fault, meanwhile=dist.barrier) -> None:
    """Have the faulty ranks do something while the others wait for them."""

    def run_probe(config, probe, *, output_dir, on_warm):
        _leave_marks(output_dir)
        dist.barrier()
        if is_faulty():
            time.sleep(0.5)
            now()
            fault()
        meanwhile()
        raise AssertionError("the other rank was not left waiting")

    worker.run_probe = run_probe


def in_forward(worker, fault) -> None:
    """Have every rank do something in the first forward pass of its training."""

    def faulty(*_):
        now()
        fault()

    def build(*arguments, **how):
        model = build_model_for(*arguments, **how)
        model.register_forward_pre_hook(faulty)
        return model

    mark(worker)
    probe.build_model_for = build


def mark(worker) -> None:
    """Have the ranks note their group when a probe begins."""
    run_probe = worker.run_probe

    def marked(config, probe, *, output_dir, on_warm):
        _leave_marks(output_dir)
        return run_probe(config, probe, output_dir=output_dir, on_warm=on_warm)

    worker.run_probe = marked


def _leave_marks(output_dir: str) -> None:
    global _folder
    _folder = Path(output_dir).parent
    (_folder / f"rank{os.environ['RANK']}.group").write_text(str(os.getpgid(0)))


def now() -> None:
    """Note when the fault happened, for how soon it was seen."""
    (_folder / f"rank{os.environ['RANK']}.fault").write_text(str(time.time()))


def is_faulty() -> bool:
    """Whether `FAULTY_RANKS` names this rank."""
    return os.environ["RANK"] in os.environ["FAULTY_RANKS"].split(",")
