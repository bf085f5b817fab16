"""One rank of a session: probe after probe, until the search is over."""

import contextlib
import dataclasses
import faulthandler
import json
import os
import platform
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from academic_pretraining.benchmarking.build import custom_kernels
from academic_pretraining.benchmarking.ceiling import ceiling_flops
from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.failures import classify
from academic_pretraining.benchmarking.flops import model_flops_per_example
from academic_pretraining.benchmarking.let_go import is_much_left
from academic_pretraining.benchmarking.probe import device_bytes, run_probe
from academic_pretraining.benchmarking.probes import ProbeResult
from academic_pretraining.benchmarking.ranks import let_collectives_wait
from academic_pretraining.benchmarking.search import next_probe
from academic_pretraining.benchmarking.session import COLLECTIVES_SECONDS
from academic_pretraining.benchmarking.stacks import dump_if_not_begun, dumped_if_not_done
from academic_pretraining.benchmarking.storage import leave_failure, write_whole
from academic_pretraining.config import TrainingConfig, config_from_dict
from academic_pretraining.errors import HardwareMismatchError
from academic_pretraining.gpus import gpu_type_of

# How soon a rank that waits notices its request.
_POLL_SECONDS = 0.05


def work(directory: str) -> None:
    """Run a session's probes on this rank; files in `directory` say what was asked and answered.

    Until the request is there, no device is touched: another session may still be measuring on it.

    The first rank to fail leaves its cause there and dies: the session's parent ends the others,
    which may be waiting in a collective.
    """
    # The launcher ends the healthy ranks of a failed one by it; the session's parent, which looks
    # for ranks that died without a word, would take them for such. It kills in the end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder = Path(directory)
    rank = int(os.environ["RANK"])
    log = folder / f"rank{rank}.log"
    stream = log.open("a", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    faulthandler.enable(stream)
    write_whole(folder / f"rank{rank}.pid", str(os.getpid()))
    (folder / f"rank{rank}.ready").touch()
    try:
        while not (folder / "request.json").exists():
            if not folder.exists():
                # Launched for nothing, on a node where nobody ends it.
                os._exit(1)
            time.sleep(_POLL_SECONDS)
        _probe_on(folder, rank)
        (folder / f"rank{rank}.over").touch()
    except BaseException as error:
        # Whatever becomes of its last words, it must not live on while the others wait for it.
        try:
            with contextlib.suppress(OSError):
                traceback.print_exc()
            failure = dataclasses.asdict(classify(error, folder))
            failure |= {"log": str(log), "time": time.time()}
            if isinstance(error, HardwareMismatchError):
                failure["mismatch"] = str(error)
            leave_failure(folder / f"rank{rank}.failure.json", failure)
        finally:
            os._exit(1)


def _probe_on(folder: Path, rank: int) -> None:
    dump_if_not_begun()
    let_collectives_wait(COLLECTIVES_SECONDS)
    request = json.loads((folder / "request.json").read_text())
    config = config_from_dict(request["config"])
    effort = Effort(
        **{
            **request["effort"],
            "micro_batch_sizes": tuple(request["effort"]["micro_batch_sizes"]),
        }
    )
    history = [ProbeResult.from_dict(result) for result in request["history"]]
    cuda = not config.hardware.gpu.is_cpu
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    _check_device(config, cuda)
    ceiling = ceiling_flops(config)
    if rank == 0:
        environment = _environment(config, cuda) | {"ceiling_flops": ceiling}
        _tell(folder, {"kind": "environment", **environment})
    while probe := next_probe(config, effort, history):
        if rank == 0:
            _tell(folder, {"kind": "start", "probe": dataclasses.asdict(probe)})
        with dumped_if_not_done(probe.deadline_seconds):
            result = run_probe(
                config,
                probe,
                output_dir=str(folder / "trainer"),
                on_warm=lambda: _tell(folder, {"kind": "warm"}) if rank == 0 else None,
            )
        history.append(result)
        if rank == 0:
            _tell(folder, {"kind": "result", "result": result.to_dict()})
        if is_much_left(result.leftover_bytes, result.device_bytes):
            if rank == 0:
                print(f"{result.leftover_bytes} bytes are left of a probe: a new process follows")
                _tell(folder, {"kind": "restart"})
            return
    if rank == 0:
        _tell(folder, {"kind": "done"})


def _environment(config: TrainingConfig, cuda: bool) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    return {
        "device_name": name,
        "device_bytes": device_bytes(cuda),
        "kernels": custom_kernels(config.recipe, free_lunch=config.method.free_lunch),
        "model_flops_per_example": model_flops_per_example(config.recipe),
    }


def _check_device(config: TrainingConfig, cuda: bool) -> None:
    if cuda and (found := gpu_type_of(torch.cuda.get_device_name())) != config.hardware.gpu_type:
        raise HardwareMismatchError(
            f"GPU type {config.hardware.gpu_type} was declared, but this rank runs on a {found}"
        )


def _tell(folder: Path, event: dict[str, Any]) -> None:
    with (folder / "events.jsonl").open("a") as stream:
        stream.write(json.dumps(event | {"time": time.time()}) + "\n")
