"""Which methods compute what plain data parallelism computes, and what is different in the rest.

Read off the installed libraries: DeepSpeed 0.19 converts the model to half precision, sums and
reduces half-precision gradients and keeps fp32 masters; accelerate 1.15 gives FSDP2 a
`MixedPrecisionPolicy` whose `param_dtype` and `reduce_dtype` are the half precision; plain and
data-parallel training keeps fp32 parameters and gradients under autocast.
"""

import functools

from academic_pretraining.methods import Backend, Sharding
from academic_pretraining.models.recipe import Precision

REFERENCE = "reference"
"""The recipe's precision as plain data parallelism has it: fp32 parameters under autocast."""


@functools.cache
def numerics(sharding: Sharding, precision: Precision, *, tf32: bool) -> str:
    """Say in a few words how a method's arithmetic differs from the reference; else `reference`.

    Rounding in another order, as by compilation, other attention kernels, recomputation or
    another accumulation, is no difference here.

    Args:
        sharding: how training state is divided.
        precision: arithmetic of the passes.
        tf32: whether fp32 matrix products may run as TF32; in half precision few are left.
    """
    if precision is Precision.FP32:
        return "TF32 products" if tf32 else REFERENCE
    if sharding.backend is Backend.DEEPSPEED:
        return f"{precision} parameters"
    if sharding.backend is Backend.FSDP:
        return f"{precision} parameters in compute"
    return REFERENCE
