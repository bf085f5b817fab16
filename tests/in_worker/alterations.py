"""What a test changes in the workers of a session; see sitecustomize.py."""

import dataclasses
import gc
import json
import os
import resource
import tempfile
from collections import Counter
from pathlib import Path

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import get_z3_leaf_modules, set_z3_leaf_module
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.distributed.tensor import DTensor
from transformers import Trainer

from academic_pretraining.benchmarking import probe
from academic_pretraining.benchmarking.build import build_model_for
from academic_pretraining.benchmarking.in_force import check_in_force
from academic_pretraining.benchmarking.learning import moved
from academic_pretraining.benchmarking.timing import StepTimer
from academic_pretraining.config import TrainingConfig
from academic_pretraining.errors import MeasurementError
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding

_seen = Counter()


def record(worker) -> None:
    """Leave `rank*.facts.json`: how the trained model really was divided, and every verdict."""
    probe.build_model_for = _build_watched
    probe.check_in_force = _record
    worker.run_probe = _then_count_engines(worker.run_probe)


def without_help(worker) -> None:
    """Train as accelerate does by itself on a CPU."""
    probe.allow_sharding_on_cpu = lambda arguments: None


def cuts_off_a_block(worker) -> None:
    """Build a model in whose first layer the MLP gets no gradient."""

    def build(*arguments, **how):
        model = build_model_for(*arguments, **how)
        model.get_submodule("gpt_neox.layers.0.mlp").register_forward_hook(
            lambda module, inputs, output: output.detach()
        )
        return model

    probe.build_model_for = build


def _then_count_engines(run_probe):
    def run(*arguments, output_dir, **how):
        result = run_probe(*arguments, output_dir=output_dir, **how)
        engines = sum(type(thing) is DeepSpeedEngine for thing in gc.get_objects())
        path = Path(output_dir).parent / f"rank{os.environ['RANK']}.engines"
        path.write_text(str(engines))
        # The session ends when rank 0 has told of its last probe.
        torch.distributed.barrier()
        return result

    return run


def _build_watched(arguments, recipe, **how):
    """Count how often layers run, and see what they hold when a forward pass is over."""
    model = build_model_for(arguments, recipe, **how)
    layers = [m for m in model.modules() if type(m).__name__ == recipe.layer_class]
    layers[0].get_submodule("mlp").register_forward_pre_hook(
        lambda *_: _seen.update(["layer runs"])
    )

    def at_the_end(*_):
        _seen.update(["forward passes"])
        held = [p for p in layers[0].parameters() if isinstance(p, DTensor) or not p.numel()]
        if held:
            _seen.update(["layers resharded after forward"])

    head = model.get_output_embeddings()
    assert head is not None
    head.register_forward_pre_hook(at_the_end)
    return model


def _record(trainer: Trainer, config: TrainingConfig, *, compiled: bool) -> None:
    wrapped = trainer.model_wrapped
    assert isinstance(wrapped, nn.Module)
    assert trainer.model is not None
    parameters = list(trainer.model.parameters())
    facts = {
        "wrapped": type(wrapped).__name__,
        "inner": type(getattr(wrapped, "_orig_mod", wrapped)).__name__,
        "parameters": sum(map(_own_numel, parameters)),
        "largest in full": max(map(_numel_in_full, parameters)),
        "optimizer state": _optimizer_numel(trainer, wrapped),
        "partitions gradients": isinstance(wrapped, DeepSpeedEngine)
        and bool(getattr(wrapped.optimizer, "partition_gradients", False)),
        "accumulation": trainer.args.gradient_accumulation_steps,
        "global step": trainer.state.global_step,
        "sum of squares": sum(float(_local(p).double().square().sum()) for p in parameters),
        "samples": [dataclasses.asdict(s) for s in _timer(trainer).samples()],
        "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "finite": all(bool(torch.isfinite(_local(p)).all()) for p in parameters),
        "seen": dict(_seen),
        "moved": moved(trainer),
        "temporary": [tempfile.gettempdir(), default_cache_dir()],
        "verdicts": _verdicts(trainer, config, compiled),
    }
    path = Path(str(trainer.args.output_dir)).parent / f"rank{os.environ['RANK']}.facts.json"
    path.write_text(json.dumps(facts))
    check_in_force(trainer, config, compiled=compiled)


def _timer(trainer: Trainer) -> StepTimer:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, StepTimer))


def _local(parameter: nn.Parameter) -> torch.Tensor:
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor  # pyright: ignore
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()


def _own_numel(parameter: nn.Parameter) -> int:
    return _local(parameter).numel()


def _numel_in_full(parameter: nn.Parameter) -> int:
    """Elements of a parameter that this rank holds as a whole now."""
    return 0 if isinstance(parameter, DTensor) else parameter.numel()


def _optimizer_numel(trainer: Trainer, wrapped: nn.Module) -> int:
    optimizer = trainer.optimizer
    if isinstance(wrapped, DeepSpeedEngine):
        optimizer = wrapped.optimizer.optimizer  # pyright: ignore
    states = [state["exp_avg"] for state in optimizer.state.values()]  # pyright: ignore
    return sum(map(_own_numel, states))


def _verdicts(trainer: Trainer, config: TrainingConfig, compiled: bool) -> dict[str, str]:
    """Ask for other settings than those that trained, one at a time and sharding in each way."""
    gpus = dataclasses.replace(
        config, hardware=Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")
    )
    method = gpus.method
    checkpointing = dataclasses.replace(
        method, activation_checkpointing=not method.activation_checkpointing
    )
    asked: dict[str, tuple[Method, bool]] = {
        f"sharding {sharding}": (dataclasses.replace(method, sharding=sharding), compiled)
        for sharding in Sharding
    }
    asked |= {"compile": (method, not compiled), "checkpointing": (checkpointing, compiled)}
    if method.sharding is not Sharding.NONE:
        asked["offloading"] = (dataclasses.replace(method, offloading=True), compiled)
    configs = {
        name: (dataclasses.replace(gpus, method=other), wish)
        for name, (other, wish) in asked.items()
    }
    other_layers = dataclasses.replace(gpus.recipe, layer_class="GPTNeoXMLP")
    configs["layers"] = (dataclasses.replace(gpus, recipe=other_layers), compiled)
    verdicts = {name: _verdict(trainer, *asked) for name, asked in configs.items()}
    # As where DeepSpeed finds no such class, and only warns.
    layers = get_z3_leaf_modules(trainer.model)  # pyright: ignore
    for is_whole in (False, True):
        for layer in layers:
            set_z3_leaf_module(layer, is_whole)
        verdicts["layers whole" if is_whole else "layers in parts"] = _verdict(
            trainer, gpus, compiled
        )
    return verdicts


def _verdict(trainer: Trainer, config: TrainingConfig, compiled: bool) -> str:
    try:
        check_in_force(trainer, config, compiled=compiled)
    except MeasurementError as error:
        return str(error).partition("not in force: ")[2]
    return ""
