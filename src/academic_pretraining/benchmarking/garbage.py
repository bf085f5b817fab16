"""Freeing what the compiler leaves behind."""

import gc

from transformers import TrainerCallback

# Those in which something has been seen to be compiled: then gradients are there, and ZeRO-3 knows
# the order of its layers.
_MICRO_BATCHES = 2


class FreesCompilerGarbage(TrainerCallback):
    """Collects garbage in the first steps of a compiled training; changes nothing else.

    What Dynamo makes of a frame refers to itself, and to the frame's tensors. It frees that with a
    collection of young objects, unless Python's own collector came while it traced: then it is old,
    and stays, for a compiled training makes so few objects that the collector hardly comes again.
    Under ZeRO-3 these were the logits of the first micro-batch: 6.3 GiB of 42.5 for pythia-160m
    (artifacts/README.md). tests/benchmarking/test_garbage.py fails when PyTorch frees them itself.

    Args:
        steps: optimizer steps at the beginning in which it may take its time. It goes before
            whatever times them.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._steps_ended = 0
        self._micro_batches = 0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Forget an earlier training."""
        self._steps_ended = self._micro_batches = 0

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        """Collect after a step's first micro-batches."""
        self._micro_batches += 1
        if self._micro_batches <= _MICRO_BATCHES:
            self._collect(args)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Collect after the last one."""
        self._collect(args)
        self._steps_ended += 1
        self._micro_batches = 0

    def _collect(self, args) -> None:
        if args.torch_compile and self._steps_ended < self.steps:
            gc.collect()
