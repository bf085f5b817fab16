"""Cases for `compute.py`, how far what they computed lies apart, and how far it may."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file

from academic_pretraining.config import BatchPlan, TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import Precision
from academic_pretraining.numerics import REFERENCE, numerics
from academic_pretraining.training_arguments import training_arguments_fields

Kind = TypeVar("Kind")

STEPS = 3
# Two ranks share eight examples.
WORLD_SIZE, GLOBAL_BATCH_SIZE = 2, 8
_NAIVE = Method()
DTYPES = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training of three steps.

    Attributes:
        model: whose small twin is trained.
        precision: arithmetic of the passes.
        method: how it is trained.
        plan: micro-batch size and accumulation.
        tf32: whether fp32 products may run as TF32.
    """

    model: str
    precision: Precision = Precision.FP32
    method: Method = _NAIVE
    plan: tuple[int, int] = (2, 2)
    tf32: bool = False

    @property
    def name(self) -> str:
        """Name of its files and its test."""
        plan = f"{self.plan[0]}x{self.plan[1]}"
        text = f"{self.model} {self.precision} {self.method.label} {plan}{' TF32' * self.tf32}"
        return text.replace(" ", "_").replace("+", "and")

    @property
    def numerics(self) -> str:
        """What the toolkit says of its arithmetic."""
        return numerics(self.method.sharding, self.precision, tf32=self.tf32)

    @property
    def unit(self) -> float:
        """Relative error of one rounding: to 11 significant bits in fp16 and TF32, 8 in bf16."""
        if self.precision is Precision.BF16:
            return 2.0**-8
        return 2.0**-11 if self.tf32 or self.precision is Precision.FP16 else 2.0**-24

    @property
    def plain(self) -> "Case":
        """Plain data parallelism in the same precision."""
        return Case(model=self.model, precision=self.precision)

    @property
    def start(self) -> "Case":
        """Plain data parallelism in fp32, whose initial weights all of a model's cases have."""
        return Case(model=self.model)


def asked_for(request: pytest.FixtureRequest, parameter: str, kind: type[Kind]) -> list[Kind]:
    """Give what tests of this run have as that parameter."""
    items = (item for item in request.session.items if isinstance(item, pytest.Function))
    found = (item.callspec.params.get(parameter) for item in items if hasattr(item, "callspec"))
    return [value for value in found if isinstance(value, kind)]


def write_cases(folder: Path, cases: Iterable[Case], gpu_type: str, **fields: Any) -> None:
    """Write what `compute.py` is to train; the start of a model stands before what begins there.

    Args:
        folder: where.
        cases: in which order.
        gpu_type: for which the arguments are made.
        fields: of TrainingArguments that differ from those.
    """
    jobs = [_job(case, gpu_type, fields) for case in cases]
    (folder / "cases.json").write_text(json.dumps(jobs))


def _job(case: Case, gpu_type: str, fields: dict[str, Any]) -> dict[str, Any]:
    published = MODELS[case.model]
    config = TrainingConfig(
        hardware=Hardware(num_nodes=1, gpus_per_node=WORLD_SIZE, gpu_type=gpu_type),
        recipe=replace(published, global_batch_size=GLOBAL_BATCH_SIZE, precision=case.precision),
        method=case.method,
    )
    plan = BatchPlan(
        world_size=WORLD_SIZE,
        micro_batch_size=case.plan[0],
        gradient_accumulation_steps=case.plan[1],
    )
    assert plan.global_batch_size == GLOBAL_BATCH_SIZE
    return {
        "name": case.name,
        "model": case.model,
        "fields": training_arguments_fields(config, plan) | {"tf32": case.tf32} | fields,
        "attention": config.attention,
        "free_lunch": case.method.free_lunch,
        "weights": None if case == case.start else f"{case.start.name}.safetensors",
        "round_to": DTYPES.get(published.precision),
    }


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What a case computed.

    Attributes:
        losses, gradient_norms: of each step; the norms before they are clipped.
        types: of parameters, and of FSDP's passes and reductions.
        before, after: parameters by name.
    """

    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    types: dict[str, list[str]]
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]


def read(folder: Path, case: Case) -> Computed:
    """Read what a case computed.

    Raises:
        AssertionError: it failed.
    """
    for error in folder.glob(f"{case.name}.error"):
        raise AssertionError(f"{case.name}: {error.read_text()}")
    facts = json.loads((folder / f"{case.name}.json").read_text())
    tensors = load_file(folder / f"{case.name}.safetensors")
    return Computed(
        losses=tuple(step["loss"] for step in facts["losses"]),
        gradient_norms=tuple(step["grad_norm"] for step in facts["losses"]),
        types={name: facts[name] for name in ("parameters", "computed", "reduced")},
        before=_named(tensors, "before."),
        after=_named(tensors, "after."),
    )


def _named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix)
        .replace("_orig_mod.", "")
        .replace("_checkpoint_wrapped_module.", ""): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far apart two trainings from the same weights are.

    Attributes:
        loss, gradient_norm: relative difference at each step.
        parameters: where they came to, over the way that the reference went, in the L2 norm.
    """

    loss: tuple[float, ...]
    gradient_norm: tuple[float, ...]
    parameters: float


def distance(mine: Computed, reference: Computed) -> Distance:
    """Compare what two cases computed."""
    apart = moved = 0.0
    for name, end in reference.after.items():
        apart += (mine.after[name].double() - end.double()).square().sum().item()
        moved += (end.double() - reference.before[name].double()).square().sum().item()
    assert moved > 0
    return Distance(
        loss=_relative(mine.losses, reference.losses),
        gradient_norm=_relative(mine.gradient_norms, reference.gradient_norms),
        parameters=(apart / moved) ** 0.5,
    )


def _relative(mine: tuple[float, ...], reference: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(abs(a - b) / abs(b) for a, b in zip(mine, reference, strict=True))


def tolerance(case: Case) -> Distance:
    """Say how far a case may lie from plain data parallelism in its precision, or in fp32.

    The order of fp32 sums alone makes 1e-5 and 1e-4 in the first step. Then Adam divides each
    gradient by its own size: a last digit of one near zero is enlarged to a whole step.

    With half-precision (or TF32) products of relative error u the loss, a mean over the 128 tokens
    of a batch, is off by about u / sqrt(128), and the gradients' norm by less than u. Where
    parameters, gradients and sums are rounded too, so are the logits and the loss itself, once
    each: 2 u. Adam's first steps go by the sign of each gradient; it is wrong for those smaller
    than their own error, a share of about u, which then lie two whole steps apart: 2 sqrt(u), and
    with more roundings 3 sqrt(u). Biases of attention keys, 0.2% of a twin, have gradients of
    rounding errors alone, in any direction: sqrt(2 * 0.002) on top.
    """
    u = case.unit
    if case.precision is Precision.FP32 and not case.tf32:
        return Distance(loss=(1e-5, 1e-3, 1e-3), gradient_norm=(1e-4, 1e-2, 1e-2), parameters=0.02)
    rounded_more = not case.tf32 and case.numerics != REFERENCE
    loss, norm, ways = (2 * u, 2 * u, 3) if rounded_more else (u / 8, u, 2)
    return Distance(
        loss=(loss,) * STEPS,
        gradient_norm=(norm,) * STEPS,
        parameters=ways * u**0.5 + (2 * 0.002) ** 0.5,
    )


def assert_begun_alike(mine: Computed, start: Computed) -> None:
    """Check that two cases have the same parameters, and began with the same values."""
    assert mine.before.keys() == start.before.keys() == mine.after.keys() == start.after.keys()
    for name, tensor in start.before.items():
        assert mine.before[name].equal(tensor), f"{name} was drawn otherwise"


def assert_within(apart: Distance, most: Distance) -> None:
    """Check that a distance is within a tolerance; one that is no number never is."""
    assert len(apart.loss) == len(apart.gradient_norm) == STEPS
    assert all(a <= b for a, b in zip(apart.loss, most.loss, strict=True)), apart
    assert all(a <= b for a, b in zip(apart.gradient_norm, most.gradient_norm, strict=True)), apart
    assert apart.parameters <= most.parameters, apart


def assert_label_fits_types(case: Case, computed: Computed) -> None:
    """Check that a label of half precision says what is really held in it."""
    half = [f"torch.{DTYPES[case.precision]}"] if case.precision in DTYPES else []
    whole = ["torch.float32"]
    match case.numerics:
        case "fp16 parameters" | "bf16 parameters":
            assert computed.types["parameters"] == half
        case "fp16 parameters in compute" | "bf16 parameters in compute":
            assert computed.types == {"parameters": whole, "computed": half, "reduced": half}
        case _:
            assert computed.types["parameters"] == whole
            assert set(computed.types["computed"] + computed.types["reduced"]) <= {
                "None",
                "torch.float32",
            }


def _has(folder: Path, case: Case) -> bool:
    failed = (folder / f"{case.name}.error").exists()
    return not failed and (folder / f"{case.name}.safetensors").exists()


CSV_COLUMNS = (
    *("model", "precision", "method", "plan", "numerics"),
    *("loss difference", "gradient norm difference", "parameter distance"),
    *("loss difference to fp32", "gradient norm difference to fp32", "parameter distance to fp32"),
)


def write_csv(path: Path, folder: Path, cases: Iterable[Case]) -> None:
    """Write the distances of all cases that were computed: the largest of the three steps."""
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(CSV_COLUMNS)
        for case in cases:
            needed = {case, case.plain, case.start}
            if not all(_has(folder, other) for other in needed):
                continue
            mine = read(folder, case)
            apart = [distance(mine, read(folder, other)) for other in (case.plain, case.start)]
            figures = [(max(d.loss), max(d.gradient_norm), d.parameters) for d in apart]
            plan = f"{case.plan[0]} x {case.plan[1]}"
            rows.writerow(
                [case.model, case.precision, case.method.label, plan, case.numerics]
                + [f"{figure:.2e}" for three in figures for figure in three]
            )
