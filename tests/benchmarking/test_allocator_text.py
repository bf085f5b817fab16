import os
import subprocess
import sys

import pytest
from samples import ALLOCATOR

from academic_pretraining.benchmarking.allocator_text import held_by_others

GIB = 2**30


# As PyTorch writes what other processes hold; in a container none is known to be one's own.
def held(*processes: int, known: bool = True) -> str:
    said = " ".join(f"Process {p} has 14.26 GiB memory in use." for p in processes)
    text = ALLOCATOR.replace("Including non-PyTorch", f"{said} Including non-PyTorch")
    return text if known else text.replace("this process has", "Process 9 has")


def test_what_others_hold_is_told_apart():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        strange = [stranger.pid, gone.pid]
        expected = {
            held(): 0,
            held(os.getpid()): 0,
            held(stranger.pid): int(14.26 * GIB),
            held(os.getpid(), *strange): 2 * int(14.26 * GIB),
            # 139.81 in all less 1.31 free, 136.93 and 0.07 PyTorch's own, 4 of the rank beside.
            held(*strange, known=False): 0,
            held(*strange, known=False).replace("136.93", "96.93"): pytest.approx(
                (139.81 - 1.31 - 96.93 - 72.13 / 1024 - 4) * GIB, abs=4
            ),
            "CUDA out of memory. Tried to allocate 1.00 GiB.": None,
            # On Windows, where the driver has no figures.
            held(*strange)
            .replace("138.49", "17179869184.00")
            .replace("14.26", "17179869184.00"): None,
        }
        assert {text: held_by_others(text) for text in expected} == expected
    finally:
        stranger.kill()
        stranger.wait()
