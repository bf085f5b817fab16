"""Who else is on this machine's GPUs."""

import contextlib
import fcntl
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from academic_pretraining.errors import DeviceBusyError, one_line
from academic_pretraining.gpus import Hardware, ask_nvidia_smi, mebibytes, visible_devices

# What drivers and desktops hold is no training: a GiB, or a fiftieth of a large device.
_IDLE_BYTES = 2**30
_IDLE_SHARE = 0.02
# A CUDA context alone takes more (300 to 500 MiB), MPS's server and a desktop's programs less.
_PROCESS_BYTES = 2**28
# The driver takes a few seconds to give a killed process's memory back.
PATIENCE_SECONDS = 20.0
# Where others are allowed, who may be there for good.
_ALLOWED_PATIENCE_SECONDS = 5.0
# Not the TMPDIR of a script's user or job: the other script may have another one.
_LOCKS = Path("/tmp")
_LOCKS_OF_THE_SYSTEM = Path("/proc/locks")


@dataclass(frozen=True, kw_only=True)
class Company:
    """Others on the GPUs that are measured, in words; empty for nobody.

    Attributes:
        allowed: whether the user does not mind them.
        first: who was there when the GPUs were taken; nobody unless allowed.
        now: looks again, and waits for what this script has just ended.
    """

    allowed: bool = False
    first: str = ""
    now: Callable[[], str] = str


def nobody_else() -> contextlib.AbstractContextManager[Company]:
    """Stand in for `gpus_alone` where the devices are taken for granted."""
    return contextlib.nullcontext(Company())


def others_on(
    hardware: Hardware, environment: Mapping[str, str], *, patience_seconds: float = 0.0
) -> str:
    """Say who else computes on the GPUs that are measured: memory in use, and by whom.

    Args:
        hardware: what is measured; of more nodes than one, only this one is looked at.
        environment: of this process.
        patience_seconds: how long to wait for a process that is just ending.
    """
    if hardware.gpu.is_cpu:
        return ""
    end = time.monotonic() + patience_seconds
    while said := _busy(hardware, environment):
        if time.monotonic() >= end:
            break
        time.sleep(1.0)
    return said


def check_idle(
    hardware: Hardware, environment: Mapping[str, str], *, patience_seconds: float = 0.0
) -> None:
    """Make sure that nobody else computes on the GPUs that will be measured.

    Args:
        hardware: what will be measured; of more nodes than one, only this one is looked at.
        environment: of this process.
        patience_seconds: how long to wait for a process that is just ending.

    Raises:
        DeviceBusyError: with the memory that is in use, and by whom.
    """
    if said := others_on(hardware, environment, patience_seconds=patience_seconds):
        raise DeviceBusyError(
            f"{said}, which would make the figures wrong: wait, choose another GPU with "
            "CUDA_VISIBLE_DEVICES, or give --allow-busy-gpus"
        )


def _busy(hardware: Hardware, environment: Mapping[str, str]) -> str:
    devices = visible_devices(environment)[: hardware.gpus_per_node]
    owners = _owners()
    said = []
    for index, device in enumerate(devices):
        here = owners.get(device.uuid, {})
        much = is_much(device.memory_used_bytes, device.memory_total_bytes)
        if much or any(used >= _PROCESS_BYTES for used in here.values()):
            by = f" by {', '.join(here)}" if here else ""
            said.append(f"GPU {index} has {device.memory_used_bytes / 2**30:.1f} GiB in use{by}")
    # Names of processes are anybody's.
    return one_line("; ".join(said))


@contextlib.contextmanager
def gpus_alone(
    hardware: Hardware,
    environment: Mapping[str, str],
    *,
    allow_busy: bool = False,
    patience_seconds: float = 0.0,
    on_wait: Callable[[str], None] = lambda text: None,
) -> Iterator[Company]:
    """Have the GPUs that will be measured without another script of this toolkit, or anybody.

    Scripts of one machine take turns, whatever their workspaces: each GPU has a lock in /tmp,
    which the operating system takes back from a killed process.

    Args:
        hardware: what will be measured; of more nodes than one, only this one is looked at.
        environment: of this process.
        allow_busy: whether others may compute there, who do not belong to this toolkit.
        patience_seconds: how long to wait for a process of this script that is just ending.
        on_wait: told, once, that another script is being waited for.

    Yields:
        who is there in spite of it.

    Raises:
        DeviceBusyError: as `check_idle`.
    """
    if hardware.gpu.is_cpu:
        yield Company()
        return
    with contextlib.ExitStack() as held:
        devices = visible_devices(environment)[: hardware.gpus_per_node]
        # In one order, so that two scripts never wait for each other.
        for uuid in sorted(device.uuid for device in devices):
            descriptor = _lock_file(_LOCKS / f"academic-pretraining-{uuid}")
            if descriptor is not None:
                held.callback(_let_go, descriptor)
                _close_in_children()
                _held.add(descriptor)
                if not _locks(descriptor, wait=False):
                    on_wait(
                        f"another measurement{_holder(descriptor)} is using a GPU: "
                        "waiting for its end"
                    )
                    _locks(descriptor, wait=True)
                    patience_seconds = max(patience_seconds, PATIENCE_SECONDS)
        first = ""
        if allow_busy:
            patience_seconds = min(patience_seconds, _ALLOWED_PATIENCE_SECONDS)
            first = others_on(hardware, environment, patience_seconds=patience_seconds)
        else:
            check_idle(hardware, environment, patience_seconds=patience_seconds)
        yield Company(
            allowed=allow_busy,
            first=first,
            now=functools.partial(
                others_on, hardware, environment, patience_seconds=PATIENCE_SECONDS
            ),
        )


# Of this process, whose forks must not hold on to its locks: torchrunx forks a server of log
# records from the script, which outlives it where it is killed.
_held: set[int] = set()


def _let_go(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


@functools.cache
def _close_in_children() -> None:
    os.register_at_fork(after_in_child=_close_held)


def _close_held() -> None:
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


def _lock_file(path: Path) -> int | None:
    """Open a file to lock, another user's too; `None` where that cannot be."""
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CREAT):
        with contextlib.suppress(OSError):
            # A pipe of that name would be waited for.
            descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
            with contextlib.suppress(OSError):
                # For other users, whatever the umask; theirs cannot be changed, and need not.
                os.fchmod(descriptor, 0o644)
            return descriptor
    return None


def _locks(descriptor: int, *, wait: bool) -> bool:
    """Lock a file; `False` where another process has it and is not waited for."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: nothing is known, and `check_idle` is left.
        return True
    return True


def _holder(descriptor: int) -> str:
    """Name the process that has a file locked; empty where the system does not tell."""
    locked = os.fstat(descriptor)
    device = f"{os.major(locked.st_dev):02x}:{os.minor(locked.st_dev):02x}"
    with contextlib.suppress(OSError, ValueError):
        for line in _LOCKS_OF_THE_SYSTEM.read_text().splitlines():
            # proc_locks(5): number, kind, advice, mode, process, device and inode; "->" for one who
            # waits. A process of another container has no number above 0.
            match line.split():
                case [_, "FLOCK", _, _, process, file, *_] if file == f"{device}:{locked.st_ino}":
                    return f" (process {process})" if int(process) > 0 else ""
    return ""


def is_much(used_bytes: float, total_bytes: float) -> bool:
    """Whether so much of a device's memory is in use that somebody computes there."""
    return used_bytes > max(_IDLE_BYTES, _IDLE_SHARE * total_bytes)


def _owners() -> dict[str, dict[str, int]]:
    """Give the bytes of each process that computes, by the GPU's UUID; a container may see none."""
    found: dict[str, dict[str, int]] = {}
    for uuid, pid, used, name in ask_nvidia_smi(
        "compute-apps", "gpu_uuid", "pid", "used_gpu_memory", "process_name"
    ):
        found.setdefault(uuid, {})[f"{name} (process {pid})"] = mebibytes(used)
    return found
