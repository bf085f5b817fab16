"""A real training's step time and peak memory beside the predicted ones."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from academic_pretraining.benchmarking.ranks import gather
from academic_pretraining.benchmarking.timing import StepTimer


def speed_report(timer: StepTimer, predicted: dict[str, Any] | None) -> dict[str, Any]:
    """Gather what a training did, over all ranks; every rank must call it.

    Returns:
        steps, their mean `step_seconds` and the `samples` behind it at the slowest rank (warm-up
        and fp16 overflows left out), `peak_bytes` of the fullest GPU (`None` on a CPU), and the
        prediction; step_seconds is `None` where no step was timed.
    """
    cuda = timer.cuda
    everyone = gather((timer.samples(), torch.cuda.max_memory_allocated() if cuda else None))
    steps = [
        max(sample.seconds for sample in step)
        for step in zip(*(samples for samples, _ in everyone), strict=True)
        if not any(sample.skipped for sample in step)
    ]
    return {
        "steps": len(steps),
        "step_seconds": sum(steps) / len(steps) if steps else None,
        "samples": steps,
        "peak_bytes": max(peak for _, peak in everyone) if cuda else None,
        "predicted": predicted,
        "finished_at": time.time(),
    }


def speed_text(report: dict[str, Any]) -> str:
    """Say it in a line."""
    if not report["steps"]:
        return "no step was timed: the first ones are warm-up"
    text = f"{report['step_seconds']:.4g} s a step over {report['steps']} steps"
    if predicted := report["predicted"]:
        error = predicted["step_seconds"] / report["step_seconds"] - 1
        text += f"; predicted {predicted['step_seconds']:.4g} s ({error:+.2%})"
        if report["peak_bytes"]:
            error = predicted["peak_bytes"] / report["peak_bytes"] - 1
            peak = report["peak_bytes"] / 2**30
            text += f"; peak memory {peak:.2f} GiB, predicted {error:+.2%} of it"
    return text


def write_speed(report: dict[str, Any], output_dir: Path) -> None:
    """Keep a report as `speed.json`."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "speed.json").write_text(json.dumps(report, indent=2) + "\n")
