"""What torch.compile has to be told, and TrainingArguments have no field for."""

import os

import torch
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config

# ConvNeXt's four sizes of layers, in training and in evaluation, whose last batch may be shorter.
_KEPT_SIZES = 32


def take_sizes_for_constants() -> None:
    """Have this process's Trainers compile with sizes as constants, unless the user says otherwise.

    For micro-batches of one size, which images are. Layers need not be, and share their code where
    they are compiled one by one, as under ZeRO-3 and FSDP. By default Dynamo takes the sizes that
    differ for variables at the second layer, of which ConvNeXt's cannot be compiled (torch 2.11 and
    2.13); and it gives up after eight of them.
    """
    # accelerate reads it when a Trainer makes its Accelerator.
    os.environ.setdefault("ACCELERATE_DYNAMO_USE_DYNAMIC", "false")
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, _KEPT_SIZES)


def keep_recomputation() -> None:
    """Let compiled code with activation checkpointing be kept, as other code is.

    torch 2.11 keeps none that recomputes attention, because of the operator by which that draws its
    random numbers again; 2.13 does (github.com/pytorch/pytorch/pull/185562). Without this a second
    probe of pythia-160m began to train after 48 s on an H100 with torch 2.11, with it after 5 s.
    Nothing is said where PyTorch knows it, for what is said here is part of every code's key.
    """
    operator = torch.ops.higher_order.graphsafe_run_with_rng_state
    if not operator.cacheable():
        inductor_config.unsafe_marked_cacheable_functions = {
            **inductor_config.unsafe_marked_cacheable_functions,
            f"{operator.__module__}.{operator.__name__}": torch.__version__,
        }
