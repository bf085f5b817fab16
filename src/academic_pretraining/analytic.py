"""What arithmetic alone says about a training: utilisation and a lower bound of its time."""

from academic_pretraining.config import BatchPlan, TrainingConfig

SECONDS_PER_DAY = 86_400


def peak_flops(config: TrainingConfig) -> float | None:
    """Dense peak of one GPU for this training's arithmetic, FLOP/s, from the datasheet.

    `None` where no datasheet speaks, as for `cpu`.
    """
    return config.hardware.gpu.peak_flops(config.precision, config.tf32)


def mfu(
    config: TrainingConfig, plan: BatchPlan, *, model_flops_per_example: float, step_seconds: float
) -> float | None:
    """Model FLOPs utilisation: achieved over peak, between 0 and 1.

    Model FLOPs are those of one forward and one backward pass; recomputation is not counted
    (PaLM, arXiv 2204.02311, appendix B).
    """
    peak = peak_flops(config)
    if peak is None:
        return None
    achieved = model_flops_per_example * plan.global_batch_size / step_seconds
    return achieved / (peak * plan.world_size)


def hardware_flops(model_flops: float, *, activation_checkpointing: bool) -> float:
    """Count recomputation too: one more forward pass, a third of the model FLOPs.

    The head and the loss are not recomputed, so that this is an upper bound.
    """
    return model_flops * (4 / 3 if activation_checkpointing else 1)


def lower_bound_days(config: TrainingConfig, *, model_flops_per_example: float) -> float | None:
    """Training time at 100% of the datasheet's peak, in days; `None` where it is unknown."""
    peak = peak_flops(config)
    if peak is None:
        return None
    flops = model_flops_per_example * config.recipe.global_batch_size * config.recipe.max_steps
    return flops / (peak * config.hardware.world_size) / SECONDS_PER_DAY
