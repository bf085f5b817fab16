"""Marking the checkpoints of a Trainer that every rank has written."""

from pathlib import Path

import torch.distributed as dist
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from academic_pretraining.benchmarking.checkpoints import mark, unmark


class MarksCheckpoints(TrainerCallback):
    """Marks a checkpoint when it is whole; `checkpoints.choose` goes by it."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Save and log as often as these arguments say, and not those of the checkpoint."""
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Take the mark away from one that is about to be written over."""
        self._unmark(args, state, control)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        """Likewise, where an epoch is what ends in one."""
        self._unmark(args, state, control)

    def on_save(self, args, state, control, **kwargs) -> None:
        """Mark what every rank has written."""
        # What the others write is not seen from the rank that writes the Trainer's state.
        if dist.is_initialized():
            dist.barrier()
        if args.should_save:
            mark(_checkpoint(args, state))

    def _unmark(self, args, state, control) -> None:
        if control.should_save and args.should_save:
            unmark(_checkpoint(args, state))


def _checkpoint(args, state) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
