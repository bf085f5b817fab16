"""One probe on one rank: a real Trainer run on synthetic data."""

import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from academic_pretraining.benchmarking.build import build_model_for, synthetic_dataset
from academic_pretraining.benchmarking.communication import CommunicationTimer, transfers
from academic_pretraining.benchmarking.cpu import allow_sharding_on_cpu
from academic_pretraining.benchmarking.garbage import FreesCompilerGarbage
from academic_pretraining.benchmarking.host import HostWatch, other_cpu_share
from academic_pretraining.benchmarking.in_force import check_in_force
from academic_pretraining.benchmarking.learning import check_learning, moved
from academic_pretraining.benchmarking.let_go import clean_up, leftover_bytes, let_go
from academic_pretraining.benchmarking.probes import (
    Outcome,
    Probe,
    ProbeResult,
    Purpose,
    StepSample,
)
from academic_pretraining.benchmarking.ranks import gather
from academic_pretraining.benchmarking.timing import EnoughTimed, SaveTimer, StepTimer
from academic_pretraining.config import TrainingConfig
from academic_pretraining.training_arguments import training_arguments_fields

# Steps in which garbage is collected, one less than the usual warm-up. On H100s the first step
# after it took 4.6% longer than later ones with offloading on one GPU, 1.1% on two (median of 13
# and 21 compiled timings; 15% at most), and as long on one GPU alone (artifacts/README.md).
_COLLECTED_STEPS = 2


def run_probe(
    config: TrainingConfig,
    probe: Probe,
    *,
    output_dir: str,
    on_warm: Callable[[], None] = lambda: None,
) -> ProbeResult:
    """Train for a few steps and agree on the outcome with the other ranks.

    `on_warm` is called after the first optimizer step, when everything has been compiled.

    Returns:
        the slowest rank's steps and the largest peak, equal on all ranks.

    Raises:
        whatever the training raises, for the caller to classify.
    """
    began = time.perf_counter()
    cuda = not config.hardware.gpu.is_cpu
    torch.compiler.reset()
    clean_up(cuda=cuda)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    # What an earlier probe left behind is not this one's.
    leftover = torch.cuda.memory_allocated() if cuda else 0
    trainer, timer = _build(config, probe, output_dir=output_dir, cuda=cuda)
    saver = SaveTimer(cuda=cuda)
    if probe.purpose is Purpose.SAVING:
        trainer.add_callback(saver)
    exchange = CommunicationTimer(probe.warm_up_steps)
    if probe.purpose is Purpose.COMMUNICATION:
        trainer.add_callback(exchange)
    host = HostWatch(probe.warm_up_steps)
    if probe.purpose is Purpose.TIMING:
        trainer.add_callback(host)
    if probe.epochs > 1 and probe.enough_seconds is not None:
        trainer.add_callback(EnoughTimed(probe.enough_seconds))
    timer.on_warm = on_warm
    built = time.perf_counter()
    graphs_before = _compiled_graphs()
    trainer.train()
    samples = timer.samples()
    check_in_force(trainer, config, compiled=probe.compile)
    mine = {
        "samples": samples,
        "peak_bytes": _peak_bytes(cuda) - leftover,
        "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else 0,
        "graphs": _compiled_graphs() - graphs_before,
        "warm_up_seconds": timer.warm_up_seconds,
        "communication": exchange.samples,
        "host": host.use,
        "save_seconds": saver.seconds,
        "save_peak_bytes": saver.peak_bytes,
    }
    # Last, for it takes memory of its own.
    mine["moved"] = moved(trainer) if probe.purpose is Purpose.TIMING else {}
    let_go(trainer)
    del trainer, timer, saver, exchange, host
    clean_up(cuda=cuda)
    mine["device_bytes"] = device_bytes(cuda)
    mine["leftover_bytes"] = leftover_bytes(mine["device_bytes"]) if cuda else 0
    everyone = gather(mine)
    check_learning([rank["moved"] for rank in everyone])
    # Every rank has written its part; the session's end removes it.
    saved = Path(output_dir).rglob("*") if probe.purpose is Purpose.SAVING else ()
    return ProbeResult(
        probe=probe,
        outcome=Outcome.OK,
        samples=_slowest([rank["samples"] for rank in everyone]),
        build_seconds=built - began,
        seconds=time.perf_counter() - began,
        **{
            name: max(rank[name] for rank in everyone)
            for name in (
                "peak_bytes",
                "reserved_bytes",
                "leftover_bytes",
                "device_bytes",
                "warm_up_seconds",
                "save_peak_bytes",
            )
        },
        communication=transfers([rank["communication"] for rank in everyone]),
        checkpoint_bytes=sum(path.stat().st_size for path in saved if path.is_file()),
        save_seconds=max(
            (rank["save_seconds"] for rank in everyone if rank["save_seconds"] is not None),
            default=None,
        ),
        graphs=min(rank["graphs"] for rank in everyone),
        other_cpu_share=other_cpu_share(
            [rank["host"] for rank in everyone], config.hardware.gpus_per_node
        ),
    )


def _build(
    config: TrainingConfig, probe: Probe, *, output_dir: str, cuda: bool
) -> tuple[Trainer, StepTimer]:
    plan = config.plan_at(probe.micro_batch_size)
    fields = training_arguments_fields(config, plan, torch_compile=probe.compile)
    # Only what makes the run short and silent departs from what is exported.
    fields |= {
        "output_dir": output_dir,
        "gradient_accumulation_steps": probe.high,
        "max_steps": probe.optimizer_steps,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    if probe.purpose is Purpose.SAVING:
        _check_room(output_dir, 12 * config.recipe.parameter_count)
        fields |= {"save_strategy": "steps", "save_steps": probe.optimizer_steps}
    arguments = TrainingArguments(**fields)
    allow_sharding_on_cpu(arguments)
    # After the arguments: under ZeRO-3 they make the model come up in shards.
    model = build_model_for(
        arguments,
        config.recipe,
        attention=config.attention,
        free_lunch=config.method.free_lunch,
    )
    examples = probe.micro_batches_per_epoch * probe.micro_batch_size * plan.world_size
    timer = StepTimer(cuda=cuda, warm_up_steps=probe.warm_up_steps)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=synthetic_dataset(config.recipe, examples),
        callbacks=[FreesCompilerGarbage(_collected_steps(probe)), timer],
    )
    return trainer, timer


def _collected_steps(probe: Probe) -> int:
    """Leave a step of the warm-up between, where two micro-batches are seen without it."""
    spared = (probe.warm_up_steps + 1) // 2
    return min(_COLLECTED_STEPS, probe.warm_up_steps if probe.high == 1 else spared)


def _check_room(folder: str, needed_bytes: int) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 2 * needed_bytes:
        raise OSError(
            f"a checkpoint of {needed_bytes / 1e9:.1f} GB was not written, for only "
            f"{free / 1e9:.1f} GB are free"
        )


def device_bytes(cuda: bool) -> int:
    """Memory of this rank's device, in bytes; of the host for a CPU."""
    if cuda:
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    import psutil

    return psutil.virtual_memory().total


def _peak_bytes(cuda: bool) -> int:
    if cuda:
        return torch.cuda.max_memory_allocated()
    # Linux counts it in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _compiled_graphs() -> int:
    # There is no public count of compiled graphs; tests/benchmarking/test_probe.py holds this down.
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _slowest(ranks: list[list[StepSample]]) -> tuple[StepSample, ...]:
    """Take each step as its slowest rank had it."""
    return tuple(max(step, key=lambda sample: sample.seconds) for step in zip(*ranks, strict=True))
