"""Programs of in_worker/, each the only rank of a group, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def run_on_one_rank(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    group = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    return subprocess.run(
        [sys.executable, str(TESTS / "in_worker" / program), *map(str, arguments)],
        env=os.environ | group | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )


def found_on_one_rank(program: str, *arguments: object) -> Any:
    """Run a program and give what it found."""
    ended = run_on_one_rank(program, *arguments)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.partition("FOUND ")[2].splitlines()[0])
