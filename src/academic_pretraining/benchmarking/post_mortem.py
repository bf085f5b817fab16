"""What a session died of, read off the files that its ranks and its launcher left."""

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any

import psutil

from academic_pretraining.benchmarking.build_locks import build_locks
from academic_pretraining.benchmarking.probes import Outcome, Probe, ProbeResult, Purpose
from academic_pretraining.benchmarking.stacks import AHEAD_SECONDS, START_SECONDS
from academic_pretraining.benchmarking.storage import found_in, is_full, read_failure
from academic_pretraining.errors import HardwareMismatchError
from academic_pretraining.gpus import Hardware

# How long the other ranks get to leave a cause that is older than the first one found.
_GRACE_SECONDS = 0.5
# The driver takes a few seconds to let go of a killed process, whose connections are gone at once.
_DEATH_SECONDS = 10.0
_CERTAIN = (Outcome.OUT_OF_MEMORY, Outcome.HOST_OUT_OF_MEMORY)
# Of a rank's stacks: Dynamo traces, Inductor compiles. Compiled code runs without these.
_COMPILING = re.compile(
    r"torch/_(dynamo/(convert_frame|symbolic_convert|output_graph)"
    r"|inductor/(compile_fx|graph|scheduler|async_compile))\.py"
)
# Of a rank's stacks: torch waits until a lock is gone.
_WAITING_FOR_A_BUILD = re.compile(r"/torch/utils/file_baton\.py\", line \d+ in wait")


def first_failure(directory: Path, hardware: Hardware) -> dict[str, Any] | None:
    """Find what a session died of: the earliest cause, and memory before what it led to.

    Raises:
        FileNotFoundError: its folder went meanwhile.
        HardwareMismatchError: a rank found another GPU type than the declared one.
    """
    # Whoever is dead by now died first: the launcher kills the others half a minute later, and
    # perhaps none of them notices that it misses one.
    killed = _killed(directory, hardware)
    if not killed and not found_in(directory, "rank*.failure.json"):
        return None
    time.sleep(_GRACE_SECONDS)
    failures = _failures(directory)
    if mismatch := next((f["mismatch"] for f in failures if "mismatch" in f), None):
        raise HardwareMismatchError(mismatch)
    if not failures:
        # Those that were listed may have gone with their folder.
        return killed
    first = _first_of(failures)
    if killed and first["outcome"] not in _CERTAIN:
        return killed
    if first.get("misses_another"):
        # Meanwhile that one may have said what it lacked.
        return _death(directory, hardware) or _first_of(_failures(directory) or failures)
    return first


def _failures(directory: Path) -> list[dict[str, Any]]:
    return [read_failure(path) for path in found_in(directory, "rank*.failure.json")]


def _first_of(failures: list[dict[str, Any]]) -> dict[str, Any]:
    """Take memory first: one rank without makes the others fail in their collectives, or sooner."""
    memory = [failure for failure in failures if failure["outcome"] in _CERTAIN]
    return min(memory or failures, key=lambda failure: failure["time"])


def _death(directory: Path, hardware: Hardware) -> dict[str, Any] | None:
    """Wait for the rank that another one misses to be gone; on other nodes nobody sees it."""
    until = time.monotonic() + (_DEATH_SECONDS if hardware.num_nodes == 1 else 0.0)
    while not (killed := _killed(directory, hardware)) and time.monotonic() < until:
        if len(found_in(directory, "rank*.failure.json")) == hardware.world_size:
            return None
        time.sleep(0.1)
    return killed


def _killed(directory: Path, hardware: Hardware) -> dict[str, Any] | None:
    """Find a rank of this machine that died without a word: the others only miss it."""
    if hardware.num_nodes > 1:
        # Their process numbers are not those of this machine.
        return None
    for path in found_in(directory, "rank*.pid"):
        rank = path.stem
        if is_live(path):
            continue
        ends = (f"{rank}.failure.json", f"{rank}.over")
        if not any((directory / name).exists() for name in ends):
            return {
                "outcome": Outcome.CRASHED,
                "cause": f"{rank} {_last_words(directory / f'{rank}.log')}",
                "requested_bytes": None,
                "free_bytes": None,
                "transient": True,
                "log": str(directory / f"{rank}.log"),
            }
    return None


def is_live(pid_file: Path) -> bool:
    """Whether the process that a rank named in its file still runs; a zombie holds nothing."""
    with contextlib.suppress(psutil.NoSuchProcess, ValueError):
        return psutil.Process(int(pid_file.read_text())).status() != psutil.STATUS_ZOMBIE
    return False


def _last_words(log: Path) -> str:
    """Say how a rank died: the fault handler names what the process did to itself."""
    with contextlib.suppress(OSError):
        for line in reversed(log.read_text(errors="replace").splitlines()):
            if line.startswith("Fatal Python error: "):
                return f"died: {line}"
    return "was killed, perhaps by the host for want of memory"


NO_PROBE = Probe(
    purpose=Purpose.MEMORY,
    micro_batch_size=1,
    high=1,
    high_steps=1,
    compile=False,
    deadline_seconds=START_SECONDS,
)
"""Stands for the probe of a session that ended before one had begun."""


def failed(probe: Probe | None, directory: Path, failure: dict[str, Any] | None) -> ProbeResult:
    """Answer for a probe whose session died of a failure, or without leaving one."""
    probe = probe or NO_PROBE
    log = directory / "launcher.log"
    text = [f"the session's folder {directory} is gone"]
    with contextlib.suppress(OSError):
        text = log.read_text(errors="replace").strip().splitlines()
    if failure is None:
        return ProbeResult(
            probe=probe,
            outcome=Outcome.CRASHED,
            cause=text[-1][:300] if text else _silent(directory),
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
        others_bytes=failure.get("others_bytes"),
        transient=failure["transient"],
        log=failure["log"],
    )


def _last_stacks(log: Path) -> str:
    """Read the stacks that a rank wrote down last; empty where it has written none."""
    with contextlib.suppress(OSError):
        stacks = f"\n{log.read_text(errors='replace')}".rpartition("\nTimeout (")
        return stacks[2] if stacks[1] else ""
    return ""


def _silent(directory: Path) -> str:
    words = "the launcher ended without a word"
    return f"the disk is full: {words}" if is_full(directory) else words


def hung(probe: Probe | None, directory: Path, *, warm: bool) -> ProbeResult:
    """Let every rank write its stacks down, of its own accord, before the group is ended."""
    probe = probe or NO_PROBE
    time.sleep(AHEAD_SECONDS)
    stacks = {log: _last_stacks(log) for log in found_in(directory, "rank*.log")}
    compiling = probe.compile and not warm and any(map(_COMPILING.search, stacks.values()))
    waiting = [log for log, where in stacks.items() if _WAITING_FOR_A_BUILD.search(where)]
    log = directory / "rank0.log"
    if waiting and (locks := build_locks(os.environ)):
        log = waiting[0]
        where = (
            "; it waits for another process to build an extension: where none does, remove "
            f"{' and '.join(map(str, locks))}"
        )
    elif log.exists():
        where = "; the stacks are in the log"
    else:
        # Not even its libraries are loaded.
        log, where = directory / "launcher.log", ""
    return ProbeResult(
        probe=probe,
        outcome=Outcome.COMPILE_FAILED if compiling else Outcome.HUNG,
        cause=f"{'no end of the compilation' if compiling else 'no answer'} within "
        f"{probe.deadline_seconds:.0f} s{where}",
        log=str(log),
    )
