"""Whether all parameters learn, read off the optimizer after a training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from deepspeed.utils import safe_get_local_optimizer_state
from torch.distributed.tensor import DTensor
from transformers import Trainer

from academic_pretraining.errors import MeasurementError

# Of a model's elements; what a batch has no use for, as a token type, may stay as it is.
_FEW = 0.01

Moved = Mapping[str, tuple[int, bool | None]]
"""Of each parameter: its elements, and whether its part here moves; `None` where nobody knows."""


def moved(trainer: Trainer) -> Moved:
    """Say of each parameter whether Adam's first moment of it, on this rank, is not all zero.

    Nothing where the optimizer has not stepped, as after overflows in fp16.
    """
    engine: Any = trainer.model_wrapped
    if hasattr(engine, "zero_optimization_stage"):
        return _moved_by_deepspeed(engine)
    model, optimizer = trainer.model, trainer.optimizer
    assert model is not None
    assert isinstance(optimizer, torch.optim.Optimizer)
    if not any(float(state.get("step", 1)) for state in optimizer.state.values()):
        return {}
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            moment = optimizer.state[parameter]["exp_avg"] if parameter in optimizer.state else None
            own = moment.to_local() if isinstance(moment, DTensor) else moment
            found[name] = (parameter.numel(), own is not None and bool(own.any()))
    return found


def _moved_by_deepspeed(engine: Any) -> Moved:
    if engine.skipped_steps >= engine.global_steps:
        return {}
    in_parts = engine.zero_optimization_stage() == 3
    found = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if in_parts:
            moment = safe_get_local_optimizer_state(parameter, "exp_avg")
            found[name] = (parameter.ds_numel, bool(moment.any()))
        elif parameter._hp_mapping is None:
            found[name] = (parameter.numel(), False)
        else:
            # Its public getter all-reduces, but fails on one rank alone for the second group of
            # parameters, those without weight decay, which DeepSpeed 0.19 links before their first
            # step; tests/benchmarking/test_learning.py holds this down.
            moment = parameter._hp_mapping.optim_fragment.get("exp_avg")
            found[name] = (parameter.numel(), None if moment is None else bool(moment.any()))
    return found


def check_learning(ranks: Sequence[Moved]) -> None:
    """Refuse a training in which a part of the model got no gradient.

    The wrong graph of a compiler can do that and say nothing, and its time is of no use.

    Args:
        ranks: what each rank knows of its own part.

    Raises:
        MeasurementError: with the share of the model, and the first parameter.
    """
    still = [
        (name, size)
        for name, (size, _) in ranks[0].items()
        if all(rank[name][1] is False for rank in ranks)
    ]
    whole = sum(size for size, _ in ranks[0].values())
    if still and (share := sum(size for _, size in still) / whole) > _FEW:
        raise MeasurementError(
            f"{share:.0%} of the parameters got no gradient, {still[0][0]} first: "
            "what was measured does not train the model"
        )
