import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from academic_pretraining.methods import Sharding


def left_of(sharding: Sharding, folder: Path, how: str) -> list[str]:
    tests = Path(__file__).parents[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "PYTHONPATH": str(tests)}
    ended = subprocess.run(
        [sys.executable, str(tests / "in_worker" / "let_go.py"), sharding, str(folder), how],
        env=os.environ | ranks | meeting,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.partition("FOUND ")[2].splitlines()[0])


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [Sharding.ZERO_2, Sharding.ZERO_3])
def test_nothing_of_a_trained_model_is_left(sharding, tmp_path):
    assert left_of(sharding, tmp_path, "helped") == []


@pytest.mark.slow
@pytest.mark.thorough
def test_without_help_deepspeed_keeps_a_model_under_zero_3(tmp_path):
    # When this fails, DeepSpeed lets go by itself: take `_empty_zero_3` out.
    assert left_of(Sharding.ZERO_3, tmp_path, "unhelped") == ["model", "engine", "optimizer"]


@pytest.mark.slow
def test_a_deepspeed_that_has_changed_costs_no_result(tmp_path):
    assert left_of(Sharding.ZERO_2, tmp_path, "changed") == []
