"""What torch.compile has to be told, and TrainingArguments have no field for."""

import os

import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

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


def compile_recomputed_layers(
    model: nn.Module, layer_class: str, arguments: TrainingArguments, *, dynamic: bool | None
) -> None:
    """Have layers compiled that are recomputed within the hooks of FSDP2 or ZeRO-3.

    Those hooks break the graph inside of the checkpoint, upon which Dynamo leaves all of it as it
    is: of a compiled Trainer's model only embedding, head and loss would be. What is compiled here,
    before it is sharded, is a layer's own computation, which the hooks surround. Where a checkpoint
    has no hooks in it, Dynamo takes the whole model.

    Args:
        model: about to be handed to a Trainer of these arguments.
        layer_class: name of what is recomputed and sharded as one.
        arguments: with `torch_compile`.
        dynamic: as for `torch.compile`.
    """
    within_hooks = bool(arguments.fsdp) or is_deepspeed_zero3_enabled()
    if not (within_hooks and arguments.gradient_checkpointing):
        return
    for module in model.modules():
        if type(module).__name__ == layer_class:
            module.forward = torch.compile(
                module.forward,
                backend=arguments.torch_compile_backend or "inductor",
                mode=arguments.torch_compile_mode,
                dynamic=dynamic,
            )
