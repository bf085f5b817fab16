"""Step time = a x accumulation + b, from timed steps."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from academic_pretraining.benchmarking.probes import StepSample


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """A predicted optimizer step.

    Attributes:
        seconds: at the real accumulation.
        standard_error_seconds: of that prediction.
        spread: standard deviation of the repeated steps over their mean.
        micro_step_seconds: a, the cost of one more micro-batch.
        overhead_seconds: b, what happens once a step (gradient sync, clipping, optimizer).
        extrapolated: whether the real accumulation was longer than any that was run.
    """

    seconds: float
    standard_error_seconds: float
    spread: float
    micro_step_seconds: float
    overhead_seconds: float
    extrapolated: bool


def fit_step_time(samples: Sequence[StepSample], accumulation: int) -> StepTime:
    """Fit timed steps and evaluate them at the real accumulation.

    Steps with an fp16 overflow are left out: the optimizer does not run in them, and a training
    has few. With one accumulation only, its mean is the answer, and a and b stay undivided.

    Args:
        samples: steps with one or two different accumulations.
        accumulation: micro-batches of one GPU in one real step.

    Raises:
        ValueError: no usable sample.
    """
    usable = [s for s in samples if not s.skipped] or list(samples)
    if not usable:
        raise ValueError("no timed steps to fit")
    groups: dict[int, list[float]] = {}
    for sample in usable:
        groups.setdefault(sample.accumulation, []).append(sample.seconds)
    longest = max(groups)
    at_longest = _Mean.of(groups[longest])
    shortest = min(groups)
    if shortest == longest:
        # Nothing to tell a from b: whole steps scale as they are.
        scale = accumulation / longest
        return StepTime(
            seconds=at_longest.mean * scale,
            standard_error_seconds=at_longest.error * scale,
            spread=at_longest.spread,
            micro_step_seconds=at_longest.mean / longest,
            overhead_seconds=0.0,
            extrapolated=accumulation > longest,
        )
    at_shortest = _Mean.of(groups[shortest])
    slope = (at_longest.mean - at_shortest.mean) / (longest - shortest)
    beyond = (accumulation - longest) / (longest - shortest)
    return StepTime(
        seconds=at_longest.mean + beyond * (at_longest.mean - at_shortest.mean),
        standard_error_seconds=math.hypot(
            (1 + beyond) * at_longest.error, beyond * at_shortest.error
        ),
        spread=at_longest.spread,
        micro_step_seconds=slope,
        overhead_seconds=at_longest.mean - slope * longest,
        extrapolated=accumulation > longest,
    )


@dataclass(frozen=True)
class _Mean:
    mean: float
    error: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "_Mean":
        mean = statistics.fmean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(mean, deviation / math.sqrt(len(values)), deviation / mean)
