"""Step time = a x accumulation + b, from timed steps."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from academic_pretraining.benchmarking.probes import StepSample
from academic_pretraining.intervals import half_width

_SHORTEST_SHARE = 1 / 8
# Of a step over its mean, where no two steps were alike and so nobody knows: too much for a
# prediction to count as certain.
_UNKNOWN_NOISE = 0.05


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """A predicted optimizer step.

    Attributes:
        seconds: at the real accumulation.
        standard_error_seconds: of that prediction.
        degrees_of_freedom: of the noise behind it: timed steps less accumulations; 0 where no two
            steps were alike, and the noise is assumed.
        spread: standard deviation of the repeated steps over their mean.
        micro_step_seconds: a, the cost of one more micro-batch.
        overhead_seconds: b, what happens once a step (gradient sync, clipping, optimizer).
        extrapolated: whether the real accumulation was longer than any that was run.
    """

    seconds: float
    standard_error_seconds: float
    degrees_of_freedom: int
    spread: float
    micro_step_seconds: float
    overhead_seconds: float
    extrapolated: bool

    @property
    def half_width_seconds(self) -> float:
        """Half of the prediction's 95% interval."""
        return half_width(self.standard_error_seconds, self.degrees_of_freedom)

    @property
    def impossible(self) -> bool:
        """Whether noise has bent the line so far that a micro-batch takes no time."""
        return self.seconds <= 0 or self.micro_step_seconds <= 0


def fit_step_time(samples: Sequence[StepSample], accumulation: int) -> StepTime:
    """Fit timed steps and evaluate them at the real accumulation.

    Steps with an fp16 overflow are left out: the optimizer does not run in them, and a training
    has few. So are steps with a small share of the longest one's micro-batches, from before a run
    was lengthened: a step's first micro-batches cost more than the rest. An epoch's last step gets
    the fetching of the micro-batch that it lacks: the short ones are all of that kind, and images
    take long to fetch. Where the real accumulation was run, the mean of those steps is the answer,
    and shorter ones only tell a from b. With one accumulation, or a line through all that is
    `impossible` there, a and b stay undivided.

    Args:
        samples: steps, best with different accumulations.
        accumulation: micro-batches of one GPU in one real step.

    Raises:
        ValueError: no usable sample.
    """
    usable = [s for s in samples if not s.skipped] or list(samples)
    if not usable:
        raise ValueError("no timed steps to fit")
    groups: dict[int, list[float]] = {}
    for sample in _with_all_fetched(usable):
        groups.setdefault(sample.accumulation, []).append(sample.seconds)
    longest = max(groups)
    groups = {n: values for n, values in groups.items() if n >= _SHORTEST_SHARE * longest}
    extrapolated = accumulation > longest
    freedom = sum(len(values) - 1 for values in groups.values())
    noise = _relative_noise(groups, freedom)
    spread = _spread(groups[longest])
    line = _line(groups) if len(groups) > 1 else None
    if line is None or accumulation == longest:
        seconds = statistics.fmean(groups[longest]) * accumulation / longest
        # With nothing to tell a from b, whole steps scale as they are; so they do where the line
        # through shorter ones has a micro-batch take no time, or more than its share.
        share = seconds / accumulation
        slope = line.slope if line and 0 < line.slope < share else share
        return StepTime(
            seconds=seconds,
            standard_error_seconds=seconds * noise / math.sqrt(len(groups[longest])),
            degrees_of_freedom=freedom,
            spread=spread,
            micro_step_seconds=slope,
            overhead_seconds=seconds - slope * accumulation if slope < share else 0.0,
            extrapolated=extrapolated,
        )
    return StepTime(
        seconds=line.at_centre + line.slope * (accumulation - line.centre),
        standard_error_seconds=noise
        * math.sqrt(1 / line.weight + (accumulation - line.centre) ** 2 / line.moment),
        degrees_of_freedom=freedom,
        spread=spread,
        micro_step_seconds=line.slope,
        overhead_seconds=line.at_centre - line.slope * line.centre,
        extrapolated=extrapolated,
    )


def _with_all_fetched(samples: Sequence[StepSample]) -> list[StepSample]:
    fetched = [sample.fetched for sample in samples]
    if len(set(fetched)) == 1:
        return list(samples)
    data_seconds = [sample.data_seconds for sample in samples]
    one_more = max(0.0, statistics.linear_regression(fetched, data_seconds).slope)
    return [
        replace(sample, seconds=sample.seconds + one_more * (sample.accumulation - sample.fetched))
        for sample in samples
    ]


class _Line(NamedTuple):
    """A fitted line.

    Attributes:
        slope: seconds for each micro-batch.
        centre: of the accumulations.
        at_centre: seconds there.
        weight: sum of weights, with the squared mean seconds of each group as variance.
        moment: second moment of the weights about the centre.
    """

    slope: float
    centre: float
    at_centre: float
    weight: float
    moment: float


def _line(groups: Mapping[int, Sequence[float]]) -> _Line:
    """Fit a line by least squares of the relative errors: a step of twice the time varies twice."""
    points = [
        (accumulation, statistics.fmean(values), len(values) / statistics.fmean(values) ** 2)
        for accumulation, values in groups.items()
    ]
    weight = sum(w for _, _, w in points)
    centre = sum(w * x for x, _, w in points) / weight
    at_centre = sum(w * y for _, y, w in points) / weight
    moment = sum(w * (x - centre) ** 2 for x, _, w in points)
    slope = sum(w * (x - centre) * (y - at_centre) for x, y, w in points) / moment
    return _Line(slope, centre, at_centre, weight, moment)


def _relative_noise(groups: Mapping[int, Sequence[float]], freedom: int) -> float:
    """Standard deviation of one step over its mean, from all groups together."""
    squares = sum(_spread(values) ** 2 * (len(values) - 1) for values in groups.values())
    return math.sqrt(squares / freedom) if freedom else _UNKNOWN_NOISE


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / statistics.fmean(values)
