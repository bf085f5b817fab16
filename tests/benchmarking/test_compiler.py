"""What the compiler is told, as those see it who are to heed it."""

from pathlib import Path

import pytest
import torch
from one_rank import found_on_one_rank
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config
from transformers import Trainer, TrainingArguments
from twins import twin

from academic_pretraining.benchmarking.build import build_model_for
from academic_pretraining.benchmarking.compiler import keep_recomputation
from academic_pretraining.methods import Sharding

DYNAMIC = "ACCELERATE_DYNAMO_USE_DYNAMIC"
MARKED = "unsafe_marked_cacheable_functions"


@pytest.fixture(autouse=True)
def own_settings(monkeypatch, own_trainer_state):
    """Put back what the compiler was told."""
    monkeypatch.delenv(DYNAMIC, raising=False)
    with (
        dynamo_config.patch(recompile_limit=dynamo_config.recompile_limit),
        inductor_config.patch({MARKED: {}}),
    ):
        yield


@pytest.fixture
def old_operator(monkeypatch):
    """Have the operator of recomputed random numbers as in torch 2.11."""
    operator = torch.ops.higher_order.graphsafe_run_with_rng_state
    monkeypatch.setattr(operator, "_cacheable", False)
    assert not operator.cacheable()
    return operator


def built(model: str, folder: Path, *, torch_compile: bool) -> Trainer:
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to="none", torch_compile=torch_compile
    )
    how = {"attention": "eager", "free_lunch": True}
    return Trainer(model=build_model_for(arguments, twin(model), **how), args=arguments)


@pytest.mark.parametrize(
    ("model", "torch_compile", "users", "dynamic"),
    [
        ("convnext-large-1k", True, None, False),
        ("convnext-large-1k", True, "true", True),
        ("convnext-large-1k", False, None, None),
        # The next text may be longer.
        ("pythia-14m", True, None, None),
    ],
)
def test_sizes_are_constants_where_images_are_compiled(
    model, torch_compile, users, dynamic, tmp_path, monkeypatch
):
    if users:
        monkeypatch.setenv(DYNAMIC, users)
    before = dynamo_config.recompile_limit
    plugin = built(model, tmp_path, torch_compile=torch_compile).accelerator.state.dynamo_plugin
    assert plugin
    assert plugin.to_kwargs().get("dynamic") is dynamic
    more = model == "convnext-large-1k" and torch_compile
    assert (dynamo_config.recompile_limit > before) == more


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sharding", "how"),
    [
        ("roberta", Sharding.FSDP_FULL_SHARD, ()),
        # As code is made of it, too, that takes a minute.
        ("roberta", Sharding.FSDP_FULL_SHARD, ("aot_eager",)),
        pytest.param(
            *("roberta", Sharding.FSDP_FULL_SHARD, ("inductor",)), marks=pytest.mark.thorough
        ),
        pytest.param("vit", Sharding.ZERO_3, (), marks=pytest.mark.thorough),
        pytest.param("vit", Sharding.ZERO_3, ("inductor",), marks=pytest.mark.thorough),
    ],
)
def test_dropout_draws_the_same_numbers_again_where_layers_are_recomputed(
    model, sharding, how, tmp_path
):
    kept, recomputed = (
        found_on_one_rank("recomputed.py", model, sharding, *how, *more, tmp_path)["steps"]
        for more in ((), ("checkpointing",))
    )
    assert len(kept) == len(recomputed) == 2
    for losses_and_gradient_norms in zip(kept, recomputed, strict=True):
        assert losses_and_gradient_norms[0] == pytest.approx(losses_and_gradient_norms[1])


@pytest.mark.parametrize("torch_compile", [False, True])
def test_code_that_recomputes_is_kept_where_it_is_compiled(old_operator, torch_compile, tmp_path):
    built("pythia-14m", tmp_path, torch_compile=torch_compile)
    assert old_operator.cacheable() == torch_compile


def test_what_the_user_has_marked_stays(old_operator):
    inductor_config.unsafe_marked_cacheable_functions = {"mine": "1"}
    keep_recomputation()
    keep_recomputation()
    assert old_operator.cacheable()
    marked = getattr(inductor_config, MARKED)
    assert marked.pop("mine") == "1"
    # Another PyTorch may compile it otherwise.
    assert list(marked.values()) == [torch.__version__]


def test_nothing_is_marked_that_pytorch_keeps(monkeypatch):
    operator = torch.ops.higher_order.graphsafe_run_with_rng_state
    monkeypatch.setattr(operator, "_cacheable", True)
    keep_recomputation()
    assert getattr(inductor_config, MARKED) == {}
