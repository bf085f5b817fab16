"""Who else is on this machine's GPUs."""

import time
from collections.abc import Mapping

from academic_pretraining.errors import DeviceBusyError
from academic_pretraining.gpus import Device, Hardware, ask_nvidia_smi, visible_devices

# What drivers and desktops hold is no training: a GiB, or a fiftieth of a large device.
_IDLE_BYTES = 2**30
_IDLE_SHARE = 0.02


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
    if hardware.gpu.is_cpu:
        return
    end = time.monotonic() + patience_seconds
    while True:
        devices = visible_devices(environment)[: hardware.gpus_per_node]
        busy = {i: d for i, d in enumerate(devices) if d.memory_used_bytes > _allowed(d)}
        if not busy:
            return
        if time.monotonic() >= end:
            break
        time.sleep(1.0)
    owners = _owners()
    said = [
        f"GPU {index} has {device.memory_used_bytes / 2**30:.1f} GiB in use"
        + (f" by {', '.join(owners[device.uuid])}" if device.uuid in owners else "")
        for index, device in busy.items()
    ]
    raise DeviceBusyError(
        f"{'; '.join(said)}, which would make the figures wrong: wait, choose another GPU with "
        "CUDA_VISIBLE_DEVICES, or give --allow-busy-gpus"
    )


def _allowed(device: Device) -> float:
    return max(_IDLE_BYTES, _IDLE_SHARE * device.memory_total_bytes)


def _owners() -> dict[str, list[str]]:
    """List the processes on each GPU, by its UUID; a container may see none."""
    found: dict[str, list[str]] = {}
    for uuid, pid, name in ask_nvidia_smi("compute-apps", "gpu_uuid", "pid", "process_name"):
        found.setdefault(uuid, []).append(f"{name} (process {pid})")
    return found
