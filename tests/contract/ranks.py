"""Starting ranks of a script, one process each, over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_ranks(script: str, folder: Path, *, world_size: int = 2, timeout: float = 900.0) -> None:
    """Run `script FOLDER` on every rank and wait; what they say is in FOLDER/rankN.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
                "PYTHONPATH": str(HERE.parent),
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            },
            stdout=(folder / f"rank{rank}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]
    try:
        statuses = [rank.wait(timeout=timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert statuses == [0] * world_size, (folder / "rank0.log").read_text()[-3000:]
