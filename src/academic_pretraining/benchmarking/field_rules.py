"""What single fields of TrainingArguments must be that these take as they are, and workers do not.

A rule says what a value must be, or nothing where it is that; null is told by the annotation.
"""

from collections.abc import Callable, Mapping
from typing import Any

from transformers.integrations.integration_utils import get_available_reporting_integrations

Rule = Callable[[Any], str]

_MOST = 2**31 - 1


def why_wrong(name: str, value: Any) -> str:
    """Say what a field must be, or nothing where it is that or has no rule."""
    return _RULES[name](value) if name in _RULES else ""


def why_wrong_together(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name a field that the others do not go with, and say what it must be."""
    if fields.get("max_steps", -1) <= 0 and fields.get("num_train_epochs") == 0:
        return "num_train_epochs", "above 0 where max_steps is not"
    if fields.get("save_strategy", "steps") == "steps" and fields.get("save_steps") == 0:
        return "save_steps", 'above 0 where save_strategy is "steps"'
    if fields.get("save_strategy") == "best" and not fields.get("metric_for_best_model"):
        return "save_strategy", "another where metric_for_best_model is not said"
    return None


def an_object(value: Any) -> str:
    """Take nothing else for a mapping: TrainingArguments would open a file of a text's name."""
    return "" if isinstance(value, dict) else "an object"


def texts(value: Any) -> str:
    """Take neither one text nor other values for a list of texts."""
    whole = isinstance(value, list) and all(isinstance(part, str) for part in value)
    return "" if whole else "a list of strings"


def _choice(*values: object) -> Rule:
    said = " or ".join(map(_json, values))
    # By type too, for 1 is True.
    return lambda value: "" if any(_is(value, each) for each in values) else said


def _is(value: Any, other: object) -> bool:
    return type(value) is type(other) and value == other


def _json(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    return f'"{value}"' if isinstance(value, str) else str(value)


def _whole(least: int, most: int = _MOST) -> Rule:
    said = f"a whole number from {least} to {most:,}"
    return lambda value: "" if type(value) is int and least <= value <= most else said


def _positive(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if number and 0 < value <= _MOST else f"a number above 0 and at most {_MOST:,}"


def _either(*rules: Rule) -> Rule:
    def rule(value: Any) -> str:
        wrong = [rule(value) for rule in rules]
        return " or ".join(wrong) if all(wrong) else ""

    return rule


def _object(parts: Mapping[str, Rule], *, needs: tuple[str, ...] = (), others: bool) -> Rule:
    def rule(value: Any) -> str:
        if wrong := an_object(value):
            return wrong
        if lacking := [name for name in needs if name not in value]:
            return f"an object with {lacking[0]}"
        if not others and (unknown := [name for name in value if name not in parts]):
            return f"an object of {', '.join(parts)}, without {unknown[0]!r}"
        for name, part in parts.items():
            if name in value and (wrong := part(value[name])):
                return f"an object whose {name} is {wrong}"
        return ""

    return rule


def _trackers(value: Any) -> str:
    here = get_available_reporting_integrations()
    known = all(name in here for name in value) if isinstance(value, list) else value in here
    alone = value in ("none", "all", ["none"], ["all"])
    said = f'"none", "all" or what is installed here ({", ".join(here) or "nothing"})'
    return "" if known or alone else said


def _accelerator(value: Any) -> str:
    if wrong := an_object(value):
        return wrong
    accumulation = value.get("gradient_accumulation_kwargs")
    twice = isinstance(accumulation, dict) and "num_steps" in accumulation
    said = "an object without num_steps, which gradient_accumulation_steps says"
    return said if twice else ""


_SWITCH = _choice(True, False)
_AUTO = _choice("auto")
_COUNT = _either(_whole(1), _AUTO)
_PRECISION = _object({"enabled": _either(_SWITCH, _AUTO)}, others=True)
_OFFLOADED = _object({"device": _choice("cpu", "none"), "pin_memory": _SWITCH}, others=True)
_NO_UPLOAD = "left out, for nothing is uploaded from here"
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")

# Of what deepspeed.py writes; the rest is DeepSpeed's to say.
_ZERO = {
    "stage": _whole(0, 3),
    "contiguous_gradients": _SWITCH,
    "allgather_bucket_size": _COUNT,
    "reduce_bucket_size": _COUNT,
    "overlap_comm": _SWITCH,
    "stage3_prefetch_bucket_size": _either(_whole(0), _AUTO),
    "stage3_param_persistence_threshold": _either(_whole(0), _AUTO),
    "sub_group_size": _whole(1, 10**15),
    "stage3_gather_16bit_weights_on_model_save": _SWITCH,
    "memory_efficient_linear": _SWITCH,
    "offload_optimizer": _OFFLOADED,
    "offload_param": _OFFLOADED,
}
_DEEPSPEED = {
    "train_batch_size": _COUNT,
    "train_micro_batch_size_per_gpu": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "gradient_clipping": _either(_positive, _choice(0), _AUTO),
    "fp16": _PRECISION,
    "bf16": _PRECISION,
    "zero_force_ds_cpu_optimizer": _SWITCH,
    "zero_optimization": _object(_ZERO, needs=("stage",), others=True),
}
# What fsdp.py writes, and what TrainingArguments add to it.
_FSDP = {
    "version": _choice(2),
    "reshard_after_forward": _SWITCH,
    "auto_wrap_policy": _choice("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"),
    "transformer_layer_cls_to_wrap": texts,
    "activation_checkpointing": _SWITCH,
    "cpu_offload": _SWITCH,
    "state_dict_type": _choice("SHARDED_STATE_DICT", "FULL_STATE_DICT"),
    "cpu_ram_efficient_loading": _SWITCH,
    "min_num_params": _whole(0, 10**15),
    "xla": _choice(False),
    "xla_fsdp_v2": _choice(False),
    "xla_fsdp_grad_ckpt": _choice(False),
}
# Of torch.utils.checkpoint, and the two that the Trainer takes out.
_CHECKPOINTING = {
    "use_reentrant": _SWITCH,
    "preserve_rng_state": _SWITCH,
    "determinism_check": _choice("default", "none"),
    "debug": _SWITCH,
    "early_stop": _SWITCH,
    "every_n_layers": _whole(1),
    "offload": _SWITCH,
}
_RULES: Mapping[str, Rule] = {
    # Those that need nothing beside torch.
    "torch_compile_backend": _choice("inductor", "eager", "aot_eager", "cudagraphs"),
    "torch_compile_mode": _choice(
        *("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
    ),
    "gradient_checkpointing_kwargs": _object(_CHECKPOINTING, others=False),
    "dataloader_prefetch_factor": _whole(1),
    "dataloader_num_workers": _whole(0, 1024),
    "dataloader_multiprocessing_context": _choice("fork", "spawn", "forkserver"),
    "ddp_backend": _choice("nccl", "gloo", "mpi", "ucc", "cpu:gloo,cuda:nccl"),
    "ddp_bucket_cap_mb": _whole(1),
    "eval_accumulation_steps": _whole(1),
    "log_level": _choice(*_LOG_LEVELS),
    "log_level_replica": _choice(*_LOG_LEVELS),
    "train_sampling_strategy": _choice(
        *("random", "sequential", "group_by_length", "batch_rebalance")
    ),
    "include_num_input_tokens_seen": _choice("all", "non_padding", "no", True, False),
    "parallelism_config": _choice(None),
    "report_to": _trackers,
    "accelerator_config": _accelerator,
    "deepspeed": _object(_DEEPSPEED, needs=("zero_optimization",), others=True),
    "fsdp": _choice(True, False),
    "fsdp_config": _object(_FSDP, others=False),
    "resume_from_checkpoint": lambda _: "left out, for --resume says whether to go on",
    "push_to_hub": lambda value: "" if value is False else f"false or {_NO_UPLOAD}",
    "hub_always_push": lambda value: "" if value is False else f"false or {_NO_UPLOAD}",
    # As TrainingArguments write each token, also where there is none.
    "hub_token": lambda value: "" if value == "<HUB_TOKEN>" else _NO_UPLOAD,
    "hub_model_id": lambda _: _NO_UPLOAD,
    "hub_private_repo": lambda _: _NO_UPLOAD,
    "hub_revision": lambda _: _NO_UPLOAD,
}
