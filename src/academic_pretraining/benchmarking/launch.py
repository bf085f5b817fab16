"""Sessions: a process group of its own that runs probes, watched and ended from outside.

torchrunx has no limit on wall time, and a rank that fails leaves the others waiting in a
collective; so the launcher runs in a child session, its workers leave files, and this side
reads them, keeps the deadline and ends the whole group.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from academic_pretraining.benchmarking.effort import Effort
from academic_pretraining.benchmarking.probes import Outcome, Probe, ProbeResult, Purpose
from academic_pretraining.config import TrainingConfig, config_to_dict
from academic_pretraining.errors import HardwareMismatchError

# Not `-m`, so that torchrunx finds `work` by its module's name.
_CHILD = (
    "import sys; from academic_pretraining.benchmarking.session import main; main(*sys.argv[1:])"
)
_POLL_SECONDS = 0.1
_START_SECONDS = 300.0
# How long the other ranks get to leave a cause that is older than the first one found.
_GRACE_SECONDS = 0.5


@dataclass(kw_only=True)
class SessionEnd:
    """What became of a session.

    Attributes:
        finished: whether the search came to its end.
        results: the probes that were answered; a failed one is the last.
        environment: what rank 0 said about its device and its model.
        start_seconds: from launch to the first probe.
    """

    finished: bool = False
    results: list[ProbeResult] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    start_seconds: float = 0.0


def run_session(
    config: TrainingConfig,
    effort: Effort,
    history: Sequence[ProbeResult],
    *,
    directory: Path,
    on_probe: Callable[[Probe], None] = lambda probe: None,
) -> SessionEnd:
    """Probe until the search is over or a probe fails; never longer than the deadlines.

    Args:
        config: what to measure.
        effort: how thoroughly.
        history: answers from earlier sessions.
        directory: private and without another session's files; all nodes must see it.
        on_probe: called when a probe begins.

    Raises:
        HardwareMismatchError: a worker found another GPU type than the declared one.
    """
    request = {
        "config": config_to_dict(config),
        "effort": dataclasses.asdict(effort),
        "history": [result.to_dict() for result in history],
    }
    (directory / "request.json").write_text(json.dumps(request))
    with (directory / "launcher.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(directory), str(os.getpid())],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        return _watch(process, directory, on_probe)
    finally:
        _end_group(process)


def _watch(
    process: subprocess.Popen[bytes], directory: Path, on_probe: Callable[[Probe], None]
) -> SessionEnd:
    end = SessionEnd()
    events = _events(directory / "events.jsonl")
    began = time.monotonic()
    deadline = began + _START_SECONDS
    probe: Probe | None = None
    warm = False
    while True:
        exited = process.poll() is not None
        while event := next(events):
            match event["kind"]:
                case "environment":
                    end.environment = event
                case "start":
                    data = event["probe"]
                    probe = Probe(**{**data, "purpose": Purpose(data["purpose"])})
                    end.start_seconds = end.start_seconds or time.monotonic() - began
                    deadline = time.monotonic() + probe.deadline_seconds
                    warm = False
                    on_probe(probe)
                case "warm":
                    warm = True
                case "result":
                    end.results.append(ProbeResult.from_dict(event["result"]))
                    probe = None
                    deadline = time.monotonic() + _START_SECONDS
                case "restart":
                    return end
                case "done":
                    end.finished = True
                    return end
        failure = _first_failure(directory)
        if failure or exited:
            end.results.append(_failed(probe, directory, failure))
            return end
        if time.monotonic() > deadline:
            end.results.append(_hung(probe, directory, warm=warm))
            return end
        time.sleep(_POLL_SECONDS)


def _events(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the events as they are written, and `None` when there is no new one."""
    while not path.exists():
        yield None
    with path.open() as stream:
        line = ""
        while True:
            line += stream.readline()
            if line.endswith("\n"):
                yield json.loads(line)
                line = ""
            else:
                yield None


def _first_failure(directory: Path) -> dict[str, Any] | None:
    if not list(directory.glob("rank*.failure.json")):
        return None
    killed = _killed(directory)
    time.sleep(_GRACE_SECONDS)
    failures = [json.loads(p.read_text()) for p in directory.glob("rank*.failure.json")]
    # One rank out of memory makes the others fail in their collectives, sometimes sooner.
    certain = (Outcome.OUT_OF_MEMORY, Outcome.HOST_OUT_OF_MEMORY)
    memory = [f for f in failures if f["outcome"] in certain]
    if mismatch := next((f["mismatch"] for f in failures if "mismatch" in f), None):
        raise HardwareMismatchError(mismatch)
    if killed and not memory:
        return killed
    return min(memory or failures, key=lambda failure: failure["time"])


def _killed(directory: Path) -> dict[str, Any] | None:
    """Find a rank of this machine that died without a word: the others only miss it."""
    if not _on_one_node(directory):
        return None
    for path in sorted(directory.glob("rank*.pid")):
        rank = path.stem
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):
            if psutil.Process(int(path.read_text())).status() != psutil.STATUS_ZOMBIE:
                continue
        if not (directory / f"{rank}.failure.json").exists():
            return {
                "outcome": Outcome.CRASHED,
                "cause": f"{rank} {_last_words(directory / f'{rank}.log')}",
                "requested_bytes": None,
                "free_bytes": None,
                "transient": True,
                "log": str(directory / f"{rank}.log"),
            }
    return None


def _last_words(log: Path) -> str:
    """Say how a rank died: the fault handler names what the process did to itself."""
    with contextlib.suppress(OSError):
        for line in reversed(log.read_text(errors="replace").splitlines()):
            if line.startswith("Fatal Python error: "):
                return f"died: {line}"
    return "was killed, perhaps by the host for want of memory"


def _on_one_node(directory: Path) -> bool:
    """Whether the ranks' process numbers are those of this machine."""
    request = json.loads((directory / "request.json").read_text())
    return request["config"]["hardware"]["num_nodes"] == 1


_NO_PROBE = Probe(
    purpose=Purpose.MEMORY,
    micro_batch_size=1,
    high=1,
    high_steps=1,
    compile=False,
    deadline_seconds=_START_SECONDS,
)


def _failed(probe: Probe | None, directory: Path, failure: dict[str, Any] | None) -> ProbeResult:
    probe = probe or _NO_PROBE
    if failure is None:
        log = directory / "launcher.log"
        text = log.read_text(errors="replace").strip().splitlines()
        return ProbeResult(
            probe=probe,
            outcome=Outcome.CRASHED,
            cause=text[-1][:300] if text else "the launcher ended without a word",
            log=str(log),
        )
    outcome = Outcome(failure["outcome"])
    if outcome is Outcome.COMPILE_FAILED and not probe.compile:
        outcome = Outcome.CRASHED
    return ProbeResult(
        probe=probe,
        outcome=outcome,
        cause=failure["cause"],
        requested_bytes=failure["requested_bytes"],
        free_bytes=failure["free_bytes"],
        transient=failure["transient"],
        log=failure["log"],
    )


def _hung(probe: Probe | None, directory: Path, *, warm: bool) -> ProbeResult:
    """Ask every rank of this machine for its stacks before the group is ended."""
    probe = probe or _NO_PROBE
    for path in directory.glob("rank*.pid") if _on_one_node(directory) else ():
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(path.read_text()), signal.SIGUSR1)
    time.sleep(1.0)
    compiling = probe.compile and not warm
    return ProbeResult(
        probe=probe,
        outcome=Outcome.COMPILE_FAILED if compiling else Outcome.HUNG,
        cause=f"{'no end of the compilation' if compiling else 'no answer'} within "
        f"{probe.deadline_seconds:.0f} s; the stacks are in the log",
        log=str(directory / "rank0.log"),
    )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
