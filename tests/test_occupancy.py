import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from academic_pretraining import occupancy
from academic_pretraining.errors import DeviceBusyError
from academic_pretraining.gpus import Hardware
from academic_pretraining.occupancy import check_idle, gpus_alone, others_on

TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="h200")


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Put an nvidia-smi before the others: MiB in use on each GPU, one call after another."""

    def make(*calls: tuple[int, ...], apps: str = "", total: int = 143_771) -> None:
        for number, used in enumerate(calls):
            lines = [f"{i}, GPU-{i}, NVIDIA H200, {mib}, {total}" for i, mib in enumerate(used)]
            (tmp_path / f"call{number}").write_text("\n".join(lines) + "\n")
        (tmp_path / "apps").write_text(apps)
        script = tmp_path / "nvidia-smi"
        script.write_text(
            f"""#!/bin/sh
cd {tmp_path}
case "$1" in *compute-apps*) cat apps; exit;; esac
n=$(cat number 2>/dev/null || echo 0)
cat "call$n"
[ -e "call$((n + 1))" ] && echo $((n + 1)) > number
exit 0
"""
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return make


def test_idle_gpus_are_fine(smi):
    # What the driver holds is no training.
    smi((0, 700))
    check_idle(TWO, {})


def test_a_busy_gpu_is_named_with_its_owner(smi):
    smi((0, 20_480), apps="GPU-1, 4711, 19000, python3\nGPU-1, 12, 900, /usr/bin/vllm, serve\n")
    with pytest.raises(DeviceBusyError) as error:
        check_idle(TWO, {})
    assert str(error.value) == (
        "GPU 1 has 20.0 GiB in use by python3 (process 4711), /usr/bin/vllm, serve (process 12), "
        "which would make the figures wrong: wait, choose another GPU with CUDA_VISIBLE_DEVICES, "
        "or give --allow-busy-gpus"
    )


def test_a_process_with_little_memory_computes_too(smi):
    smi((0, 700), apps="GPU-1, 4711, 520, python3\nGPU-0, 1, 60, nvidia-cuda-mps-server\n")
    assert others_on(TWO, {}) == "GPU 1 has 0.7 GiB in use by python3 (process 4711)"
    assert others_on(Hardware(num_nodes=1, gpus_per_node=1, gpu_type="h200"), {}) == ""
    # Where nobody says how much, the device's own figure counts.
    smi((0, 700), apps="GPU-1, 4711, [N/A], python3\n")
    assert others_on(TWO, {}) == ""


def test_any_name_of_a_process_is_shown_as_text(smi, tmp_path):
    smi((0, 20_480))
    (tmp_path / "apps").write_bytes(b"GPU-1, 4711, 19000, /home/j\xf6rg/\x1b[2Jpython\n")
    assert others_on(TWO, {}) == (
        "GPU 1 has 20.0 GiB in use by /home/j\ufffdrg/\\x1b[2Jpython (process 4711)"
    )


def test_a_container_may_not_see_who_it_is(smi):
    smi((5_000, 30_000))
    with pytest.raises(DeviceBusyError, match=r"^GPU 0 has 4\.9 GiB in use; GPU 1 has 29\.3 GiB"):
        check_idle(TWO, {})


def test_gpus_that_are_not_measured_may_be_busy(smi):
    smi((0, 0, 50_000))
    check_idle(TWO, {})
    with pytest.raises(DeviceBusyError):
        check_idle(TWO, {"CUDA_VISIBLE_DEVICES": "2,0"})


@pytest.mark.parametrize(("total", "busy"), [(24_564, True), (143_771, False)])
def test_what_is_little_depends_on_the_device(smi, total, busy):
    smi((2_000,), total=total)
    one = Hardware(num_nodes=1, gpus_per_node=1, gpu_type="h200")
    if busy:
        with pytest.raises(DeviceBusyError):
            check_idle(one, {})
    else:
        check_idle(one, {})


def test_a_process_that_is_ending_is_waited_for(smi, tmp_path: Path):
    smi((9_000, 0), (0, 0))
    check_idle(TWO, {}, patience_seconds=60.0)
    assert (tmp_path / "number").read_text() == "1\n"


def test_a_cpu_is_never_busy(smi):
    smi((90_000,))
    check_idle(Hardware(num_nodes=1, gpus_per_node=1, gpu_type="cpu"), {})


HOLDER = """
import os, sys, time
from pathlib import Path
from academic_pretraining import occupancy
from academic_pretraining.gpus import Hardware
from academic_pretraining.occupancy import gpus_alone
occupancy._LOCKS = Path(sys.argv[2])
hardware = Hardware(num_nodes=1, gpus_per_node=int(sys.argv[1]), gpu_type="h200")
with gpus_alone(hardware, os.environ):
    print("has them", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Start another process that holds the first GPUs of this machine until it is told."""
    monkeypatch.setattr(occupancy, "_LOCKS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with contextlib.ExitStack() as processes:

        def start(gpus: int) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", HOLDER, str(gpus), tmp_path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            processes.callback(process.wait)
            processes.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "has them\n"
            return process

        yield start


@pytest.mark.parametrize("killed", [False, True])
def test_scripts_take_turns(smi, holder, killed):
    smi((0, 0))
    other = holder(1)
    told = []

    def release(text):
        told.append(text)
        other.kill() if killed else other.stdin.write("\n") and other.stdin.flush()

    with gpus_alone(TWO, os.environ, on_wait=release):
        assert other.wait(60) == (-9 if killed else 0)
    assert told == [
        f"another measurement (process {other.pid}) is using a GPU: waiting for its end"
    ]


@pytest.mark.parametrize(
    "locks",
    [
        None,
        "1: POSIX  ADVISORY  WRITE 12 {device}:{inode} 0 EOF\n",
        "1: -> FLOCK  ADVISORY  WRITE 12 {device}:{inode} 0 EOF\n",
        "1: FLOCK  ADVISORY  WRITE 12 {device}:1{inode} 0 EOF\n",
        # On another file system.
        "1: FLOCK  ADVISORY  WRITE 12 0{device}:{inode} 0 EOF\n",
        "1: FLOCK  ADVISORY  WRITE -1 {device}:{inode} 0 EOF\n",
        "1: FLOCK  ADVISORY  WRITE ? {device}:{inode} 0 EOF\n",
    ],
)
def test_who_has_a_gpu_is_left_open_where_the_system_does_not_tell(tmp_path, monkeypatch, locks):
    told = tmp_path / "locks"
    monkeypatch.setattr(occupancy, "_LOCKS_OF_THE_SYSTEM", told)
    with (tmp_path / "lock").open("w") as lock:
        found = os.fstat(lock.fileno())
        where = {
            "device": f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}",
            "inode": found.st_ino,
        }
        if locks is not None:
            told.write_text(locks.format(**where))
        assert occupancy._holder(lock.fileno()) == ""
        told.write_text("1: FLOCK  ADVISORY  WRITE 12 {device}:{inode} 0 EOF\n".format(**where))
        assert occupancy._holder(lock.fileno()) == " (process 12)"


FORKS = """
import os, sys, time
reader, writer = os.pipe()
if not os.fork():
    os.write(writer, b"forked")
    os.execvp("sleep", ["sleep", "600"]) if sys.argv[3] == "executes" else time.sleep(600)
os.read(reader, 6)
"""


@pytest.mark.parametrize("child", ["forks", "executes"])
def test_what_a_killed_script_forked_does_not_hold_its_lock(smi, tmp_path, monkeypatch, child):
    smi((0, 0))
    monkeypatch.setattr(occupancy, "_LOCKS", tmp_path)
    forks = HOLDER.replace("    print(", "    exec(FORKS)\n    print(", 1)
    code = f"FORKS = {FORKS!r}\n{forks}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "1", tmp_path, child],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "has them\n"
        process.kill()
        process.wait()
        with gpus_alone(TWO, {}, on_wait=pytest.fail):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_script_with_other_temporary_files_is_waited_for_too(smi, holder, tmp_path, monkeypatch):
    smi((0, 0))
    holder(1)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "own"))
    with pytest.raises(InterruptedError), gpus_alone(TWO, {}, on_wait=_interrupt):
        pass


def test_other_gpus_are_not_waited_for(smi, holder):
    smi((0, 0))
    holder(1)
    one = Hardware(num_nodes=1, gpus_per_node=1, gpu_type="h200")
    with gpus_alone(one, {"CUDA_VISIBLE_DEVICES": "1"}, on_wait=pytest.fail):
        pass


def test_strangers_are_refused_at_once_unless_allowed(smi, holder, monkeypatch):
    # Not time.sleep itself: waiting for nvidia-smi may take one.
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=pytest.fail)
    monkeypatch.setattr(occupancy, "time", clock)
    smi((0, 20_480))
    with pytest.raises(DeviceBusyError, match=r"^GPU 1 has 20\.0 GiB"), gpus_alone(TWO, {}):
        pass
    with gpus_alone(TWO, {}, allow_busy=True) as company:
        assert company.allowed
        assert company.first == "GPU 1 has 20.0 GiB in use"


@pytest.mark.parametrize("leaves", [False, True])
def test_who_comes_later_is_seen_when_asked(smi, holder, monkeypatch, leaves):
    smi((0, 0))
    monkeypatch.setattr(occupancy, "PATIENCE_SECONDS", 60.0 if leaves else 0.0)
    with gpus_alone(TWO, {}) as company:
        smi((0, 20_480), *[(0, 0)] * leaves)
        assert (company.allowed, company.first) == (False, "")
        assert company.now() == ("" if leaves else "GPU 1 has 20.0 GiB in use")


def test_its_own_ending_process_is_no_company(smi, holder):
    smi((0, 30_000), (0, 0))
    with gpus_alone(TWO, {}, allow_busy=True, patience_seconds=60.0) as company:
        assert company.first == ""


def test_a_cpu_has_no_company(smi):
    smi((90_000,))
    cpu = Hardware(num_nodes=1, gpus_per_node=1, gpu_type="cpu")
    for alone in (gpus_alone(cpu, {}, allow_busy=True), occupancy.nobody_else()):
        with alone as company:
            assert (company.first, company.now()) == ("", "")


def test_a_file_that_another_user_made_serves_too(smi, holder, tmp_path):
    smi((0, 0))
    for number in range(2):
        (tmp_path / f"academic-pretraining-GPU-{number}").touch(mode=0o444)
    holder(2)
    with pytest.raises(InterruptedError), gpus_alone(TWO, {}, on_wait=_interrupt):
        pass


def _interrupt(text):
    raise InterruptedError


def test_a_link_is_not_followed(smi, holder, tmp_path):
    smi((0, 0))
    (tmp_path / "academic-pretraining-GPU-0").symlink_to(tmp_path / "elsewhere")
    with gpus_alone(TWO, {}):
        assert not (tmp_path / "elsewhere").exists()
