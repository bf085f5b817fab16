"""What the compiler is told, as those see it who are to heed it."""

import pytest
import torch
import transformers
from torch._inductor import config

from academic_pretraining.benchmarking.build import build_model_for
from academic_pretraining.benchmarking.compiler import keep_recomputation


@pytest.mark.parametrize("torch_compile", [False, True])
def test_what_is_compiled_takes_sizes_for_constants(
    torch_compile, tiny_config, tmp_path, monkeypatch, own_trainer_state
):
    monkeypatch.delenv("ACCELERATE_DYNAMO_USE_DYNAMIC", raising=False)
    arguments = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", torch_compile=torch_compile
    )
    recipe = tiny_config().recipe
    model = build_model_for(arguments, recipe, attention="eager", free_lunch=True)
    trainer = transformers.Trainer(model=model, args=arguments)
    plugin = trainer.accelerator.state.dynamo_plugin
    assert plugin
    assert plugin.to_kwargs().get("dynamic") is (False if torch_compile else None)


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
