from pathlib import Path
from typing import Any

import pytest

from academic_pretraining.benchmarking.arguments import check_fields
from academic_pretraining.errors import InvalidFileError

ZERO = {"zero_optimization": {"stage": 2}}
OBJECT = "an object"
SWITCH = "true or false"
NO_UPLOAD = "left out, for nothing is uploaded from here"
CASES: list[tuple[str, Any, str]] = [
    ("torch_compile_backend", "nosuch", '"inductor" or "eager" or "aot_eager" or "cudagraphs"'),
    ("torch_compile_backend", 5, "str or null"),
    (
        *("torch_compile_mode", "nosuch"),
        '"default" or "reduce-overhead" or "max-autotune" or "max-autotune-no-cudagraphs"',
    ),
    ("gradient_checkpointing_kwargs", [1], OBJECT),
    ("gradient_checkpointing_kwargs", "{}", OBJECT),
    (
        *("gradient_checkpointing_kwargs", {"use_reentrant": "no"}),
        f"an object whose use_reentrant is {SWITCH}",
    ),
    (
        *("gradient_checkpointing_kwargs", {"x": 1}),
        "an object of use_reentrant, preserve_rng_state, determinism_check, debug, early_stop, "
        "every_n_layers, offload, without 'x'",
    ),
    ("dataloader_prefetch_factor", 0, "a whole number from 1 to 2,147,483,647"),
    ("dataloader_num_workers", 100_000, "a whole number from 0 to 1,024"),
    ("dataloader_multiprocessing_context", "x", '"fork" or "spawn" or "forkserver"'),
    ("ddp_backend", "nosuch", '"nccl" or "gloo" or "mpi" or "ucc" or "cpu:gloo,cuda:nccl"'),
    ("ddp_bucket_cap_mb", 0, "a whole number from 1 to 2,147,483,647"),
    ("deepspeed", [1], OBJECT),
    ("deepspeed", "/etc/passwd", OBJECT),
    ("deepspeed", {"fp16": {}}, "an object with zero_optimization"),
    ("deepspeed", {"zero_optimization": 5}, "an object whose zero_optimization is an object"),
    (
        *("deepspeed", {"zero_optimization": {}}),
        "an object whose zero_optimization is an object with stage",
    ),
    *(
        (
            *("deepspeed", {"zero_optimization": {"stage": stage}}),
            "an object whose zero_optimization is an object whose stage is a whole number from 0 "
            "to 3",
        )
        for stage in ("x", 4, -1, True, 1.0, None)
    ),
    (
        *("deepspeed", ZERO | {"fp16": {"enabled": 1}}),
        f'an object whose fp16 is an object whose enabled is {SWITCH} or "auto"',
    ),
    ("deepspeed", ZERO | {"fp16": True}, "an object whose fp16 is an object"),
    (
        *("deepspeed", ZERO | {"train_batch_size": 0}),
        'an object whose train_batch_size is a whole number from 1 to 2,147,483,647 or "auto"',
    ),
    ("fsdp", 5, SWITCH),
    ("fsdp", "full_shard", SWITCH),
    ("fsdp_config", "/etc/passwd", OBJECT),
    ("fsdp_config", {"version": 1}, "an object whose version is 2"),
    ("fsdp_config", {"version": 2.0}, "an object whose version is 2"),
    (
        *("fsdp_config", {"transformer_layer_cls_to_wrap": [1]}),
        "an object whose transformer_layer_cls_to_wrap is a list of strings",
    ),
    ("label_names", [1], "a list of strings"),
    ("include_for_metrics", {}, "a list of strings"),
    ("accelerator_config", "some.json", OBJECT),
    (
        *("accelerator_config", {"gradient_accumulation_kwargs": {"num_steps": 2}}),
        "an object without num_steps, which gradient_accumulation_steps says",
    ),
    ("per_device_train_batch_size", 2**20 + 1, "at most 1,048,576"),
    ("gradient_accumulation_steps", 2**31 - 1, "at most 1,048,576"),
    ("lr_scheduler_kwargs", "some", OBJECT),
    ("resume_from_checkpoint", "/etc", "left out, for --resume says whether to go on"),
    ("push_to_hub", True, f"false or {NO_UPLOAD}"),
    ("hub_always_push", True, f"false or {NO_UPLOAD}"),
    ("hub_model_id", "me/model", NO_UPLOAD),
    ("hub_token", "hf_x", NO_UPLOAD),
]


@pytest.mark.parametrize(("name", "value", "must"), CASES, ids=str)
def test_what_a_worker_would_fail_of_is_refused_before(name, value, must):
    with pytest.raises(InvalidFileError) as caught:
        check_fields({name: value}, Path("a.json"))
    assert str(caught.value) == (
        f"a.json says {name} is {value!r}, but it must be {must}: "
        "write the file with scripts/to_training_arguments.py"
    )


@pytest.mark.parametrize("value", ["x", ["x"], ["none", "x"], [1], 5], ids=str)
def test_a_tracker_that_is_not_installed_is_refused(value):
    with pytest.raises(InvalidFileError, match=r"report_to is .+, but it must be "):
        check_fields({"report_to": value}, Path("a.json"))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"max_steps": -1, "num_train_epochs": 0},
            "num_train_epochs is 0, but it must be above 0 where max_steps is not: ",
        ),
        (
            {"save_steps": 0, "save_strategy": "steps"},
            'save_steps is 0, but it must be above 0 where save_strategy is "steps": ',
        ),
        ({"save_steps": 0}, "save_steps is 0, but it must be above 0 where "),
        (
            {"save_strategy": "best"},
            "save_strategy is 'best', but it must be another where metric_for_best_model is not ",
        ),
    ],
    ids=str,
)
def test_fields_that_do_not_go_together_are_refused(fields, why):
    with pytest.raises(InvalidFileError) as caught:
        check_fields(fields, Path("a.json"))
    assert str(caught.value).startswith(f"a.json says {why}")


def test_a_tracker_that_is_installed_is_accepted(monkeypatch):
    monkeypatch.setattr(
        "academic_pretraining.benchmarking.field_rules.get_available_reporting_integrations",
        lambda: ["wandb", "tensorboard"],
    )
    for value in ("wandb", ["tensorboard", "wandb"], [], "none", ["none"], None):
        check_fields({"report_to": value}, Path("a.json"))


@pytest.mark.parametrize(
    "fields",
    [
        {"save_steps": 0, "save_strategy": "no"},
        {"save_steps": 0.1, "logging_steps": 50, "logging_first_step": True},
        {"num_train_epochs": 0, "max_steps": 5},
        {"num_train_epochs": 2.5, "max_steps": -1, "run_name": "mine", "save_total_limit": None},
        {"torch_compile": True, "torch_compile_mode": "max-autotune"},
        {"torch_compile_backend": "eager"},
        {"gradient_checkpointing_kwargs": {"every_n_layers": 2, "offload": True}},
        {"dataloader_num_workers": 8, "dataloader_prefetch_factor": 4},
        {"deepspeed": ZERO | {"wall_clock_breakdown": True, "gradient_clipping": 1.0}},
        {"deepspeed": None, "fsdp": None, "fsdp_config": None},
        {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": False}},
        {"push_to_hub": False, "hub_token": None, "hub_strategy": "every_save"},
        {"optim_target_modules": "all-linear", "label_names": ["labels"]},
        {"accelerator_config": {"split_batches": True}},
        {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_with_dataloader": False}}},
    ],
    ids=str,
)
def test_what_people_change_is_accepted(fields):
    check_fields(fields, Path("a.json"))
