"""Seconds until the first optimizer step is over, in one process that compiles a setting twice.

`python benchmarks/second_compilation.py --model M --method LABEL --micro-batch-size B
[--output FILE.csv]` runs two probes on this machine's first GPU, or its CPU, which differ in
gradient accumulation alone, as a refinement does. LABEL is one of `benchmark.py --cmd dry-run`. For
each it prints how long warm-up took, compilation included, and how many graphs the compiler had
kept. What earlier runs compiled plays no part.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import torch

from academic_pretraining.benchmarking.probe import run_probe
from academic_pretraining.benchmarking.probes import Probe, Purpose
from academic_pretraining.config import TrainingConfig, grid
from academic_pretraining.gpus import Hardware, detect_hardware
from academic_pretraining.methods import MethodSpace
from academic_pretraining.models import get_model


def main() -> None:
    """Print and write one row a probe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--micro-batch-size", type=int, required=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = detect_hardware(os.environ)
    hardware = Hardware(num_nodes=1, gpus_per_node=1, gpu_type=found.gpu_type)
    recipe = get_model(options.model)
    valid = {m.label: m for m, reasons in grid(hardware, recipe, MethodSpace.ALL) if not reasons}
    if options.method not in valid:
        parser.error(f"--method {options.method!r} is none of {', '.join(valid)}")
    config = TrainingConfig(hardware=hardware, recipe=recipe, method=valid[options.method])
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(config, options.micro_batch_size, Path(folder))
    table = pl.DataFrame(rows)
    if options.output:
        table.write_csv(options.output)
    with pl.Config(tbl_cols=-1, tbl_width_chars=200, fmt_str_lengths=80):
        print(table)


def measure(config: TrainingConfig, micro_batch_size: int, folder: Path) -> list[dict[str, Any]]:
    """Run both probes in this process, the only rank of its group."""
    cuda = not config.hardware.gpu.is_cpu
    group = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    address = {"MASTER_ADDR": "127.0.0.1", "TORCHINDUCTOR_CACHE_DIR": folder / "inductor"}
    os.environ.update({name: str(value) for name, value in (group | address).items()})
    os.environ.setdefault("MASTER_PORT", "29500")
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    rows = []
    for number, accumulation in enumerate((2, 3), start=1):
        probe = Probe(
            purpose=Purpose.TIMING,
            micro_batch_size=micro_batch_size,
            high=accumulation,
            high_steps=3,
            compile=True,
            deadline_seconds=600.0,
        )
        counters = torch._dynamo.utils.counters
        counters.clear()
        result = run_probe(config, probe, output_dir=str(folder / "out"))
        rows.append(
            {
                "model": config.recipe.name,
                "device": torch.cuda.get_device_name() if cuda else "cpu",
                "method": config.method.label,
                "micro_batch_size": micro_batch_size,
                "probe": number,
                "warm_up_seconds": round(result.warm_up_seconds, 1),
                "graphs_kept": counters["inductor"]["fxgraph_cache_hit"],
                "graphs_compiled": counters["inductor"]["fxgraph_cache_miss"]
                + counters["inductor"]["fxgraph_cache_bypass"],
                "torch": torch.__version__,
            }
        )
    torch.distributed.destroy_process_group()
    return rows


if __name__ == "__main__":
    main()
