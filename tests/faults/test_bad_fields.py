"""Exported files that are JSON and say something that cannot train."""

import json
from typing import Any

import pytest
from exports import READERS, Exported, many
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import furnished

every_reader = pytest.mark.parametrize("script", READERS)


@pytest.fixture
def exported(tmp_path) -> Exported:
    return Exported(furnished(tmp_path))


junk = st.one_of(
    # Hypothesis takes words from the code that is loaded, "sgd" or "steps" among them.
    st.text(max_size=5).map(lambda text: text and f"?{text}"),
    st.lists(st.integers(), min_size=1, max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), min_size=1, max_size=2),
)
NUMBERS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "learning_rate"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "warmup_steps"),
    *("logging_steps", "save_steps", "seed", "num_train_epochs", "per_device_eval_batch_size"),
    *("dataloader_num_workers", "ddp_timeout", "label_smoothing_factor", "eval_delay"),
)
SWITCHES = (
    *("fp16", "bf16", "torch_compile", "use_cpu", "gradient_checkpointing", "dataloader_drop_last"),
    *("remove_unused_columns", "logging_nan_inf_filter", "full_determinism", "push_to_hub"),
)
WORDS = ("optim", "lr_scheduler_type", "save_strategy", "logging_strategy", "eval_strategy")
bad_number = st.one_of(
    *(junk, st.none(), st.booleans(), st.integers(max_value=-2), st.integers(min_value=2**32)),
    st.floats(max_value=-1.5, allow_infinity=False),
)


@every_reader
@many
@given(name=st.sampled_from(NUMBERS), value=bad_number)
def test_a_field_that_is_no_such_number_is_named(exported, script, name, value):
    said = exported.refuses_fields(script, json.dumps(exported.fields | {name: value}))
    assert said.startswith(f"error: args.json says {name} is ")


@every_reader
@settings(many, max_examples=50)
@given(
    name=st.sampled_from(SWITCHES), value=st.one_of(junk, st.none(), st.integers(), st.floats(0, 1))
)
def test_a_field_that_is_no_switch_is_named(exported, script, name, value):
    said = exported.refuses_fields(script, json.dumps(exported.fields | {name: value}))
    assert said.startswith(f"error: args.json says {name} is ")


@every_reader
@settings(many, max_examples=50)
@given(
    name=st.sampled_from(WORDS), value=st.one_of(junk, st.none(), st.integers(), st.just("adam"))
)
def test_a_choice_that_training_arguments_lack_is_refused(exported, script, name, value):
    said = exported.refuses_fields(script, json.dumps(exported.fields | {name: value}))
    assert said.startswith("error: TrainingArguments refuse args.json (")


@every_reader
@settings(many, max_examples=50)
@given(
    name=st.from_regex(r"zz[a-z_\x1b\n\"]{0,20}", fullmatch=True), value=st.one_of(junk, st.none())
)
def test_a_field_that_there_is_not_is_named(exported, script, name, value):
    said = exported.refuses_fields(script, json.dumps(exported.fields | {name: value}))
    assert "which is no field of TrainingArguments: write the file with" in said


# Each is refused by TrainingArguments itself, or trains nothing.
TOGETHER: dict[str, dict[str, Any]] = {
    "both precisions": {"fp16": True, "bf16": True},
    "both in evaluation": {"fp16_full_eval": True, "bf16_full_eval": True},
    "no logging steps": {"logging_steps": 0},
    "logging between steps": {"logging_steps": 2.5},
    "saving between steps": {"save_steps": 2.5},
    "no batch": {"per_device_train_batch_size": 0},
    "half a batch": {"per_device_train_batch_size": 1.5},
    "no accumulation": {"gradient_accumulation_steps": 0},
    "half an accumulation": {"gradient_accumulation_steps": 0.5},
    "beta of one": {"adam_beta1": 1},
    "best model without evaluation": {"load_best_model_at_end": True},
    "a plateau of nothing": {"lr_scheduler_type": "reduce_lr_on_plateau"},
    "prefetching without workers": {"dataloader_prefetch_factor": 2},
    "no time": {"ddp_timeout": 0},
    "no checkpoint kept": {"save_total_limit": 0},
    "an accelerator of nothing": {"accelerator_config": {"sharpness": 1}},
    "a file that is not there": {"accelerator_config": "missing.json"},
    "debugging of nothing": {"debug": "everything"},
    "an argument that no schedule takes": {"lr_scheduler_kwargs": {"sharpness": 1}},
    "an optimizer with other arguments": {"optim_args": "sharpness"},
    "an optimizer that is not installed": {"optim": "adamw_apex_fused"},
    "FSDP of nothing": {"fsdp": "sideways", "fsdp_config": {}},
    "a number for FSDP": {"fsdp": 5},
    "another file for FSDP": {"fsdp": True, "fsdp_config": "/etc/passwd"},
    "another file for DeepSpeed": {"deepspeed": "/etc/passwd"},
    "a stage that ZeRO lacks": {"deepspeed": {"zero_optimization": {"stage": "x"}}},
    "a compiler of nothing": {"torch_compile_backend": "nosuch"},
    "a tracker of nothing": {"report_to": ["x"]},
    "too many workers": {"dataloader_num_workers": 100_000},
    "no epoch": {"max_steps": -1, "num_train_epochs": 0},
    "saving at no step": {"save_steps": 0, "save_strategy": "steps"},
    "going on elsewhere": {"resume_from_checkpoint": "/etc"},
    "an upload": {"push_to_hub": True},
}


@every_reader
@pytest.mark.parametrize("case", TOGETHER)
def test_fields_that_cannot_train_are_refused(exported, script, case):
    said = exported.refuses_fields(script, json.dumps(exported.fields | TOGETHER[case]))
    assert said.startswith("error: ")
    assert "args.json" in said


BAD_SETTING: dict[str, st.SearchStrategy] = {
    "hardware": st.one_of(
        *(junk, st.none(), st.integers(), st.just({})),
        st.fixed_dictionaries(
            {
                "num_nodes": st.one_of(junk, st.integers(max_value=0), st.integers(10**6)),
                "gpus_per_node": st.integers(1, 8),
                "gpu_type": st.just("cpu"),
            }
        ),
        st.fixed_dictionaries(
            {
                "num_nodes": st.just(1),
                "gpus_per_node": st.just(1),
                "gpu_type": st.one_of(junk, st.none(), st.just("CPU"), st.just("h2000")),
            }
        ),
    ),
    "model": st.one_of(junk, st.none(), st.integers(), st.just("pythia-15m")),
    "attention": st.one_of(
        *(junk, st.integers(), st.booleans()),
        st.sampled_from(["someone/kernel", "someone/kernel@main:run", "flash_attention_2", ""]),
    ),
    "free_lunch": st.one_of(junk, st.none(), st.integers(0, 1)),
    "method": st.one_of(st.none(), st.integers(), st.lists(st.text())),
    "arguments_sha256": st.one_of(st.none(), st.integers(), st.lists(st.text())),
    "prediction": st.one_of(
        *(junk, st.integers(), st.booleans(), st.just({})),
        st.fixed_dictionaries(
            {
                "step_seconds": st.one_of(
                    junk, st.none(), st.booleans(), st.floats(max_value=0, allow_infinity=False)
                ),
                "peak_bytes": st.integers(1),
                "mfu": st.none(),
            }
        ),
        st.fixed_dictionaries(
            {
                "step_seconds": st.just(1.0),
                "peak_bytes": st.one_of(junk, st.none(), st.booleans(), st.integers(max_value=0)),
                "mfu": st.none(),
            }
        ),
        st.fixed_dictionaries(
            {
                "step_seconds": st.just(1.0),
                "peak_bytes": st.just(1),
                "mfu": st.one_of(
                    junk, st.just(True), st.floats(max_value=-1, allow_infinity=False)
                ),
            }
        ),
    ),
    "zz": st.one_of(junk, st.none()),
}


@every_reader
@pytest.mark.parametrize("name", BAD_SETTING)
@settings(many, max_examples=20)
@given(data=st.data())
def test_a_setting_with_something_else_inside_is_refused(exported, script, name, data):
    setting = exported.setting | {name: data.draw(BAD_SETTING[name])}
    assert "args" in exported.refuses(script, setting=json.dumps(setting).encode())


@every_reader
def test_a_setting_without_its_hardware_is_refused(exported, script):
    del exported.setting["hardware"]
    exported.refuses(script, setting=json.dumps(exported.setting).encode())


def test_verifying_needs_a_model_and_a_prediction(exported):
    for name in ("model", "prediction", "arguments_sha256"):
        rest = {key: value for key, value in exported.setting.items() if key != name}
        said = exported.refuses("verify.py", setting=json.dumps(rest).encode())
        assert said.startswith("error: there is no prediction beside args.json: measure")
