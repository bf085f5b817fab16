"""Starting ranks of a script, one process each: over gloo, or over NCCL with a GPU each."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def run_ranks(
    script: str,
    folder: Path,
    *,
    world_size: int = 2,
    timeout_seconds: float = 900.0,
    gpus: bool = False,
) -> None:
    """Run `script FOLDER` on every rank and wait; what they say is in FOLDER/rankN.log.

    The rest of the environment reaches them, such as `NCCL_*`. Without `gpus` they see none.
    """
    port = _free_port()
    # Where the package is not installed, the path that found it here finds it there.
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / script, folder],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": os.pathsep.join(paths),
                "OMP_NUM_THREADS": "1",
            }
            | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""}),
            stdout=(folder / f"rank{rank}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]
    deadline = time.monotonic() + timeout_seconds
    try:
        # One that fails leaves the others waiting for it.
        while any(rank.poll() is None for rank in ranks) and not any(r.returncode for r in ranks):
            assert time.monotonic() < deadline, f"no end within {timeout_seconds} s{_said(folder)}"
            time.sleep(0.1)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    wrong = [number for number, rank in enumerate(ranks) if rank.returncode]
    assert not wrong, f"ranks {wrong} failed{_said(folder)}"


def _free_port() -> int:
    """Find one that no system gives to who asks for any: rank 0 takes seconds to bind it."""
    first = 20_000 + os.getpid() % 5_000
    for port in range(first, first + 5_000):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _said(folder: Path) -> str:
    logs = sorted(folder.glob("rank*.log"))
    return "".join(f"\n{log.name}: {log.read_text(errors='replace')[-3000:]}" for log in logs)
