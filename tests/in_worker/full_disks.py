"""Disks that take no more, under the workers of a session; see faulty.py."""

import contextlib
import os
import sys
from pathlib import Path

import torch
from faulty import folder, in_forward, is_faulty, mark, now

from academic_pretraining.benchmarking import probe


def under_the_events(worker) -> None:
    tell = worker._tell

    def faulty(directory, event):
        if event["kind"] == "warm":
            _fill()
            with Path("/dev/full").open("w") as stream:
                stream.write("an event")
        tell(directory, event)

    mark(worker)
    worker._tell = faulty


def under_the_log(worker) -> None:
    def fault():
        if is_faulty():
            _fill()
            print("a line of the log")

    in_forward(worker, fault)


def under_the_checkpoint(worker) -> None:
    """Fill the disk of the session, which must be a small one, when a checkpoint is written."""
    save = torch.save

    def faulty(*arguments, **how):
        now()
        with contextlib.suppress(OSError), (folder() / "of others").open("wb", 0) as others:
            while True:
                others.write(bytes(4096))
        return save(*arguments, **how)

    mark(worker)
    # There was room when it was looked for.
    probe._check_room = lambda *_: None
    torch.save = faulty


def _fill() -> None:
    """Let this rank's log and its failure end on a full disk."""
    now()
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (1, 2, sys.stdout.fileno()):
        os.dup2(full, descriptor)
    (folder() / f"rank{os.environ['RANK']}.failure.partial").symlink_to("/dev/full")
