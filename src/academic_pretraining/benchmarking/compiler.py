"""What torch.compile has to be told, and TrainingArguments have no field for."""

import os

import torch
from torch._inductor import config

# By which recomputed layers draw the random numbers again that they drew at first.
_RECOMPUTED = "torch.ops.higher_order.graphsafe_run_with_rng_state"


def compile_for_each_shape() -> None:
    """Let the next Trainer compile with sizes as constants.

    For micro-batches of one size, which images are. Layers need not be, and share their code where
    they are compiled one by one, as under ZeRO-3 and FSDP. By default Dynamo takes the sizes that
    differ for variables at the second layer, of which ConvNeXt's cannot be compiled (torch 2.11 and
    2.13).
    """
    # accelerate reads it when the Trainer makes its Accelerator.
    os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "false"


def keep_recomputation() -> None:
    """Let code with activation checkpointing be compiled once for all probes of a session.

    torch 2.11 compiles it anew each time, 2.13 keeps it of itself
    (github.com/pytorch/pytorch/pull/185562): a second probe of pythia-160m began to train after
    48 s on an H100 without this, after 5 s with it. tests/gpu fails without it.
    """
    config.unsafe_marked_cacheable_functions = {
        **config.unsafe_marked_cacheable_functions,
        _RECOMPUTED: torch.__version__,
    }
