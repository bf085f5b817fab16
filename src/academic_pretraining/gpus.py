"""The GPUs that are known, and the ones that this machine has."""

import difflib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from academic_pretraining.errors import (
    HardwareMismatchError,
    InvalidConfigError,
    UnknownNameError,
)
from academic_pretraining.models.recipe import Precision

_TERA = 1e12
_GIGA = 1e9

# More machines, or GPUs in one, is a mistake, and would overflow.
_MOST = 100_000


@dataclass(frozen=True, kw_only=True)
class GpuType:
    """One kind of GPU, from its datasheet; results are shared by all cards of a row.

    PCIe boards are a kind of their own: they draw less power than SXM boards and are connected
    otherwise, and so train at another pace.

    Attributes:
        name: what the command line calls it.
        label: name in tables and figures.
        device_names: regular expressions for the whole of the driver's name.
        memory_gib: nominal memory; `None` for a CPU.
        bandwidth_bytes_per_second: of device memory.
        fp16_flops, bf16_flops: dense matrix products that accumulate in fp32, FLOP/s.
        tf32_flops, fp32_flops: dense, FLOP/s.
        capability: CUDA compute capability.
        price_usd: of one card, in late 2024.
        source: of the figures.
    """

    name: str
    label: str
    device_names: tuple[str, ...] = ()
    memory_gib: float | None = None
    bandwidth_bytes_per_second: float | None = None
    fp16_flops: float | None = None
    bf16_flops: float | None = None
    tf32_flops: float | None = None
    fp32_flops: float | None = None
    capability: tuple[int, int] = (0, 0)
    price_usd: float | None = None
    source: str

    @property
    def is_cpu(self) -> bool:
        """Whether this row stands for a machine without a GPU."""
        return not self.device_names

    @property
    def supports_bf16(self) -> bool:
        """Whether it has bf16 matrix units (Ampere and newer)."""
        return self.capability >= (8, 0)

    @property
    def supports_tf32(self) -> bool:
        """Whether it has TF32 matrix units (Ampere and newer)."""
        return self.capability >= (8, 0)

    def peak_flops(self, precision: Precision, tf32: bool) -> float | None:
        """Dense peak for an arithmetic, FLOP/s; `None` where no datasheet speaks."""
        if precision is Precision.FP16:
            return self.fp16_flops
        if precision is Precision.BF16:
            return self.bf16_flops
        return self.tf32_flops if tf32 else self.fp32_flops


def _gpu(
    name: str,
    label: str,
    device_names: tuple[str, ...],
    *,
    memory: float,
    bandwidth: float,
    half: float,
    tf32: float | None,
    fp32: float,
    capability: tuple[int, int],
    price: float | None = None,
    source: str,
) -> GpuType:
    """Make a row from a datasheet's units: GB, GB/s and TFLOP/s."""
    ampere = capability >= (8, 0)
    return GpuType(
        name=name,
        label=label,
        device_names=device_names,
        memory_gib=memory,
        bandwidth_bytes_per_second=bandwidth * _GIGA,
        fp16_flops=half * _TERA,
        bf16_flops=half * _TERA if ampere else None,
        tf32_flops=tf32 * _TERA if tf32 is not None else None,
        fp32_flops=fp32 * _TERA,
        capability=capability,
        price_usd=price,
        source=source,
    )


_AMPERE = "NVIDIA GA102 whitepaper"
_ADA = "NVIDIA Ada ProViz whitepaper and datasheet"
_PAPER_PRICE = "; price: arXiv 2410.23261"

GPUS: Mapping[str, GpuType] = MappingProxyType({gpu.name: gpu for gpu in (
    _gpu("geforce3090", "RTX 3090", (r"NVIDIA GeForce RTX 3090",),
         memory=24, bandwidth=936, half=71, tf32=35.6, fp32=35.6, capability=(8, 6),
         price=1300, source=_AMPERE + _PAPER_PRICE),
    _gpu("v100", "V100 SXM", (r"(Tesla|NVIDIA) V100-(SXM\d|DGXS)-32GB.*",),
         memory=32, bandwidth=900, half=125, tf32=None, fp32=15.7, capability=(7, 0),
         source="NVIDIA V100 datasheet (SXM2, 32 GB; SXM3 and DGX Station likewise)"),
    _gpu("v100-pcie", "V100 PCIe", (r"(Tesla|NVIDIA) V100-PCIE-32GB.*",),
         memory=32, bandwidth=900, half=112, tf32=None, fp32=14, capability=(7, 0),
         source="NVIDIA V100 datasheet (PCIe, 32 GB)"),
    _gpu("a6000", "RTX A6000", (r"NVIDIA RTX A6000",),
         memory=48, bandwidth=768, half=154.8, tf32=77.4, fp32=38.7, capability=(8, 6),
         price=4800, source=_AMPERE + _PAPER_PRICE),
    _gpu("a40", "A40", (r"NVIDIA A40",),
         memory=48, bandwidth=696, half=149.7, tf32=74.8, fp32=37.4, capability=(8, 6),
         source="NVIDIA A40 datasheet"),
    _gpu("l40", "L40", (r"NVIDIA L40",),
         memory=48, bandwidth=864, half=181.05, tf32=90.5, fp32=90.5, capability=(8, 9),
         source="NVIDIA L40 datasheet"),
    _gpu("a100", "A100 80GB SXM", (r"NVIDIA A100-SXM4-80GB",),
         memory=80, bandwidth=2039, half=312, tf32=156, fp32=19.5, capability=(8, 0),
         price=19000, source="NVIDIA A100 datasheet (SXM4, 400 W)" + _PAPER_PRICE),
    _gpu("a100-pcie", "A100 80GB PCIe", (r"NVIDIA A100 80GB PCIe",),
         memory=80, bandwidth=1935, half=312, tf32=156, fp32=19.5, capability=(8, 0),
         source="NVIDIA A100 datasheet (PCIe, 300 W)"),
    _gpu("h100", "H100 SXM", (r"NVIDIA H100 80GB HBM3",),
         memory=80, bandwidth=3350, half=989.4, tf32=494.7, fp32=67, capability=(9, 0),
         price=30000, source="NVIDIA H100 datasheet (SXM5)" + _PAPER_PRICE),
    _gpu("geforce4090", "RTX 4090", (r"NVIDIA GeForce RTX 4090",),
         memory=24, bandwidth=1008, half=165.2, tf32=82.6, fp32=82.6, capability=(8, 9),
         source="NVIDIA Ada GPU architecture whitepaper"),
    _gpu("geforce5090", "RTX 5090", (r"NVIDIA GeForce RTX 5090",),
         memory=32, bandwidth=1792, half=209.5, tf32=104.8, fp32=104.8, capability=(12, 0),
         source="NVIDIA RTX Blackwell GPU architecture whitepaper"),
    _gpu("l40s", "L40S", (r"NVIDIA L40S",),
         memory=48, bandwidth=864, half=362.05, tf32=183, fp32=91.6, capability=(8, 9),
         source="NVIDIA L40S datasheet"),
    _gpu("rtx6000ada", "RTX 6000 Ada", (r"NVIDIA RTX 6000 Ada Generation",),
         memory=48, bandwidth=960, half=364.2, tf32=182.1, fp32=91.1, capability=(8, 9),
         source=_ADA),
    _gpu("a100-40gb", "A100 40GB SXM", (r"NVIDIA A100-SXM4-40GB",),
         memory=40, bandwidth=1555, half=312, tf32=156, fp32=19.5, capability=(8, 0),
         source="NVIDIA A100 40GB datasheet (SXM4, 400 W)"),
    _gpu("a100-40gb-pcie", "A100 40GB PCIe", (r"NVIDIA A100-PCIE-40GB",),
         memory=40, bandwidth=1555, half=312, tf32=156, fp32=19.5, capability=(8, 0),
         source="NVIDIA A100 40GB datasheet (PCIe, 250 W)"),
    _gpu("h100-pcie", "H100 PCIe", (r"NVIDIA H100 PCIe",),
         memory=80, bandwidth=2000, half=756, tf32=378, fp32=51.2, capability=(9, 0),
         source="NVIDIA H100 datasheet (PCIe)"),
    _gpu("h200", "H200", (r"NVIDIA H200",),
         memory=141, bandwidth=4800, half=989, tf32=494.5, fp32=67, capability=(9, 0),
         source="NVIDIA H200 datasheet (SXM5)"),
    _gpu("b200", "B200", (r"NVIDIA B200",),
         memory=180, bandwidth=8000, half=2250, tf32=1125, fp32=80, capability=(10, 0),
         source="NVIDIA Blackwell datasheet (SXM)"),
    GpuType(name="cpu", label="CPU", source="no datasheet: for trying things out, always in fp32"),
)})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Machines to train on; `gpu_type` is a name in `GPUS`.

    Raises:
        UnknownNameError: no row has this GPU type.
        InvalidConfigError: a count below 1.
    """

    num_nodes: int
    gpus_per_node: int
    gpu_type: str

    def __post_init__(self) -> None:
        if not isinstance(self.gpu_type, str):
            raise UnknownNameError(f"no GPU type is called {self.gpu_type!r}: give a name")
        if self.gpu_type not in GPUS:
            close = difflib.get_close_matches(self.gpu_type, GPUS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(GPUS)}"
            raise UnknownNameError(f"no GPU type is called {self.gpu_type!r}: {hint}")
        for flag, count in (("num-nodes", self.num_nodes), ("gpus-per-node", self.gpus_per_node)):
            if type(count) is not int:
                raise InvalidConfigError(f"--{flag} is {count!r}, but must be a whole number")
            if count < 1:
                raise InvalidConfigError(f"--{flag} is {count}, but must be at least 1")
            if count > _MOST:
                raise InvalidConfigError(f"--{flag} is {count}, but must be at most {_MOST:,}")

    @property
    def gpu(self) -> GpuType:
        """The row of its GPU type."""
        return GPUS[self.gpu_type]

    @property
    def world_size(self) -> int:
        """Processes over all nodes, one a GPU."""
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU of this machine, as the driver describes it."""

    name: str
    uuid: str
    memory_used_bytes: int
    memory_total_bytes: int


def gpu_type_of(device_name: str) -> str:
    """Find the row for the driver's name of a device.

    Raises:
        HardwareMismatchError: no row knows it.
    """
    for gpu in GPUS.values():
        if any(re.fullmatch(pattern, device_name) for pattern in gpu.device_names):
            return gpu.name
    raise HardwareMismatchError(
        f"this machine has a {device_name!r}, which no GPU type stands for: add a row to gpus.py"
    )


def visible_devices(environment: Mapping[str, str]) -> tuple[Device, ...]:
    """List the GPUs that a process with this environment would see, in its order.

    Asks nvidia-smi, so that torch need not be loaded; empty where there is none.
    """
    found: dict[str, Device] = {}
    for index, uuid, name, used, total in ask_nvidia_smi(
        "gpu", "index", "uuid", "name", "memory.used", "memory.total"
    ):
        found[index] = Device(
            name=name,
            uuid=uuid,
            memory_used_bytes=mebibytes(used),
            memory_total_bytes=mebibytes(total),
        )
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    return tuple(found.values()) if chosen is None else tuple(_chosen(found, chosen.split(",")))


def ask_nvidia_smi(about: str, *figures: str) -> Iterator[list[str]]:
    """Yield the figures of each line of `nvidia-smi --query-...`; nothing where it has no answer.

    The last figure may hold commas, and lines that lack one are left out.
    """
    command = [
        "nvidia-smi",
        f"--query-{about}={','.join(figures)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        output = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return
    for line in output.stdout.splitlines():
        parts = [part.strip() for part in line.split(",", len(figures) - 1)]
        if len(parts) == len(figures):
            yield parts


def mebibytes(figure: str) -> int:
    """Read nvidia-smi's MiB; 0 where it says that there is no figure, as on shared memory."""
    return int(figure) * 2**20 if figure.isdigit() else 0


def _chosen(found: Mapping[str, Device], chosen: Sequence[str]) -> list[Device]:
    devices = []
    for key in (key.strip() for key in chosen):
        by_uuid = [d for d in found.values() if key and d.uuid.startswith(key)]
        if key in found:
            devices.append(found[key])
        elif by_uuid:
            devices.append(by_uuid[0])
        else:
            # CUDA ignores everything from the first entry that it does not know.
            break
    return devices


def detect_hardware(environment: Mapping[str, str]) -> Hardware:
    """Describe this machine; one `cpu` where it has no GPU.

    Raises:
        HardwareMismatchError: a GPU that no row knows, or GPUs of different kinds.
    """
    devices = visible_devices(environment)
    if not devices:
        return Hardware(num_nodes=1, gpus_per_node=1, gpu_type="cpu")
    names = sorted({device.name for device in devices})
    if len(names) > 1:
        raise HardwareMismatchError(
            f"this machine has different GPUs ({', '.join(names)}), which train at the pace of the "
            "slowest: choose equal ones with CUDA_VISIBLE_DEVICES"
        )
    return Hardware(num_nodes=1, gpus_per_node=len(devices), gpu_type=gpu_type_of(names[0]))


def check_hardware(hardware: Hardware, environment: Mapping[str, str]) -> None:
    """Compare declared hardware with this machine.

    Raises:
        HardwareMismatchError: another GPU type, or fewer GPUs than declared.
    """
    if hardware.gpu.is_cpu:
        return
    devices = visible_devices(environment)
    declared = f"--gpu-type {hardware.gpu_type} --gpus-per-node {hardware.gpus_per_node}"
    if not devices:
        raise HardwareMismatchError(
            f"{declared} was given, but this machine has no GPU: run it on one that has, or try "
            "things out with --gpu-type cpu"
        )
    for device in devices[: hardware.gpus_per_node]:
        if gpu_type_of(device.name) != hardware.gpu_type:
            raise HardwareMismatchError(
                f"{declared} was given, but this machine has {device.name!r}: give --gpu-type "
                f"{gpu_type_of(device.name)}"
            )
    if len(devices) < hardware.gpus_per_node:
        raise HardwareMismatchError(
            f"{declared} was given, but only {len(devices)} are visible here: give "
            f"--gpus-per-node {len(devices)}"
        )
