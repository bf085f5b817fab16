"""What the compiler is told, as those see it who are to heed it."""

import pytest
import torch
import transformers
from torch._inductor import config
from twins import twin

from academic_pretraining.benchmarking.build import build_model_for
from academic_pretraining.benchmarking.compiler import keep_recomputation


@pytest.mark.parametrize(
    ("model", "torch_compile", "dynamic"),
    [
        ("convnext-large-1k", True, False),
        ("convnext-large-1k", False, None),
        # The next text may be longer.
        ("pythia-14m", True, None),
    ],
)
def test_sizes_are_constants_where_images_are_compiled(
    model, torch_compile, dynamic, tmp_path, monkeypatch, own_trainer_state
):
    monkeypatch.delenv("ACCELERATE_DYNAMO_USE_DYNAMIC", raising=False)
    arguments = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", torch_compile=torch_compile
    )
    built = build_model_for(arguments, twin(model), attention="eager", free_lunch=True)
    trainer = transformers.Trainer(model=built, args=arguments)
    plugin = trainer.accelerator.state.dynamo_plugin
    assert plugin
    assert plugin.to_kwargs().get("dynamic") is dynamic


def test_code_that_recomputes_may_be_kept(monkeypatch):
    name = "unsafe_marked_cacheable_functions"
    monkeypatch.setattr(config, name, {"mine": "1"})
    keep_recomputation()
    keep_recomputation()
    assert torch.ops.higher_order.graphsafe_run_with_rng_state.cacheable()
    # What a user has marked stays, and the operator's name is one that PyTorch knows.
    assert getattr(config, name)["mine"] == "1"
    [marked] = set(getattr(config, name)) - {"mine"}
    operator = torch.ops.higher_order.graphsafe_run_with_rng_state
    assert marked == f"{operator.__module__}.{operator.__name__}"
