import re
import subprocess
from types import SimpleNamespace

import pytest

from academic_pretraining.errors import HardwareMismatchError, InvalidConfigError, UnknownNameError
from academic_pretraining.gpus import (
    GPUS,
    Hardware,
    check_hardware,
    detect_hardware,
    gpu_type_of,
    visible_devices,
)
from academic_pretraining.models.recipe import Precision

DRIVER_NAMES = {
    "NVIDIA GeForce RTX 3090": "geforce3090",
    "NVIDIA GeForce RTX 4090": "geforce4090",
    "NVIDIA GeForce RTX 5090": "geforce5090",
    "Tesla V100-SXM2-32GB": "v100",
    "Tesla V100-PCIE-32GB": "v100-pcie",
    "Tesla V100-SXM3-32GB-H": "v100",
    "Tesla V100-DGXS-32GB": "v100",
    "NVIDIA RTX A6000": "a6000",
    "NVIDIA RTX 6000 Ada Generation": "rtx6000ada",
    "NVIDIA A40": "a40",
    "NVIDIA L40": "l40",
    "NVIDIA L40S": "l40s",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100-pcie",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb-pcie",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}
CARDS = [gpu for gpu in GPUS.values() if not gpu.is_cpu]


@pytest.fixture
def machine(monkeypatch):
    """Give this machine GPUs with these names, as nvidia-smi would list them."""

    def give(*names: str) -> None:
        lines = [f"{i}, GPU-{i}f0e-aa, {name}, {i}, 1024" for i, name in enumerate(names)]
        answer = SimpleNamespace(stdout="".join(f"{line}\n" for line in lines))
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)

    return give


def hardware(gpu_type: str, gpus_per_node: int = 1, num_nodes: int = 1) -> Hardware:
    return Hardware(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu_type=gpu_type)


def message_of(error: type[Exception], function, *arguments, **keywords) -> str:
    with pytest.raises(error) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


def test_the_table_holds_the_promised_gpus():
    paper = {"geforce3090", "v100", "a6000", "a40", "l40", "a100", "h100"}
    further = {"geforce4090", "geforce5090", "l40s", "rtx6000ada", "a100-40gb"}
    boards = {"v100-pcie", "a100-pcie", "a100-40gb-pcie", "h100-pcie"}
    assert set(GPUS) == paper | further | boards | {"h200", "b200", "cpu"}
    assert set(DRIVER_NAMES.values()) == set(GPUS) - {"cpu"}


@pytest.mark.parametrize("name", GPUS)
def test_each_row_is_filed_under_its_name_and_says_its_source(name):
    assert GPUS[name].name == name
    assert GPUS[name].label
    assert GPUS[name].source


@pytest.mark.parametrize("gpu", CARDS, ids=lambda gpu: gpu.name)
def test_each_card_has_figures_in_base_units(gpu):
    assert gpu.memory_gib in {24, 32, 40, 48, 80, 141, 180}
    assert 5e11 < gpu.bandwidth_bytes_per_second < 1e13
    assert 5e13 < gpu.fp16_flops < 5e15
    assert 1e13 < gpu.fp32_flops < 2e14
    assert gpu.supports_bf16 == gpu.supports_tf32 == (gpu.capability >= (8, 0))
    assert (gpu.bf16_flops is not None) == gpu.supports_bf16
    assert (gpu.tf32_flops is not None) == gpu.supports_tf32
    if gpu.tf32_flops is not None:
        assert gpu.fp32_flops <= gpu.tf32_flops < gpu.fp16_flops


@pytest.mark.parametrize("gpu", CARDS, ids=lambda gpu: gpu.name)
def test_peak_follows_the_arithmetic(gpu):
    assert gpu.peak_flops(Precision.FP16, tf32=True) == gpu.fp16_flops
    assert gpu.peak_flops(Precision.BF16, tf32=False) == gpu.bf16_flops
    assert gpu.peak_flops(Precision.FP32, tf32=False) == gpu.fp32_flops
    assert gpu.peak_flops(Precision.FP32, tf32=True) == gpu.tf32_flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [("h100", 989.4), ("h100-pcie", 756), ("l40", 181.05), ("a100", 312), ("geforce3090", 71)],
)
def test_half_precision_peaks_are_the_datasheets(name, tera):
    assert GPUS[name].fp16_flops == pytest.approx(tera * 1e12)


def test_the_papers_prices():
    prices = {name: gpu.price_usd for name, gpu in GPUS.items() if gpu.price_usd is not None}
    assert prices == {"geforce3090": 1300, "a6000": 4800, "a100": 19000, "h100": 30000}


def test_a_cpu_has_no_peaks_and_only_fp32():
    cpu = GPUS["cpu"]
    assert (cpu.is_cpu, cpu.supports_bf16, cpu.supports_tf32) == (True, False, False)
    assert [cpu.peak_flops(precision, tf32=False) for precision in Precision] == [None] * 3


@pytest.mark.parametrize(("device_name", "name"), DRIVER_NAMES.items())
def test_a_drivers_name_stands_for_one_row(device_name, name):
    assert gpu_type_of(device_name) == name
    matching = {
        gpu.name
        for gpu in GPUS.values()
        if any(re.fullmatch(pattern, device_name) for pattern in gpu.device_names)
    }
    assert matching == {name}


@pytest.mark.parametrize("name", ["NVIDIA T4", "NVIDIA H200 NVL", "Tesla V100-SXM2-16GB", ""])
def test_an_unknown_device_is_refused_with_advice(name):
    assert message_of(HardwareMismatchError, gpu_type_of, name) == (
        f"this machine has a {name!r}, which no GPU type stands for: add a row to gpus.py"
    )


def test_world_size_counts_all_nodes():
    assert hardware("h100", gpus_per_node=4, num_nodes=2).world_size == 8
    assert hardware("h100").gpu is GPUS["h100"]


def test_a_misspelt_gpu_type_gets_the_closest():
    assert message_of(UnknownNameError, hardware, "h10") == (
        "no GPU type is called 'h10': did you mean h100?"
    )


def test_a_gpu_type_like_no_other_gets_the_list():
    assert message_of(UnknownNameError, hardware, "?") == (
        f"no GPU type is called '?': choose one of {', '.join(GPUS)}"
    )


@pytest.mark.parametrize("count", [0, -1])
def test_counts_below_one_are_refused(count):
    assert message_of(InvalidConfigError, hardware, "h100", num_nodes=count) == (
        f"--num-nodes is {count}, but must be at least 1"
    )
    assert message_of(InvalidConfigError, hardware, "h100", gpus_per_node=count) == (
        f"--gpus-per-node is {count}, but must be at least 1"
    )


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2]),
        ("0,1,2", [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , 2", [1, 2]),
        ("", []),
        ("-1", []),
        ("1,-1,2", [1]),
        ("0,7,2", [0]),
        ("GPU-2f0e,GPU-0f", [2, 0]),
        ("GPU-9", []),
        ("MIG-1f0e", []),
    ],
)
def test_cuda_visible_devices_is_honoured(machine, visible, indices):
    machine("NVIDIA H200", "NVIDIA A40", "NVIDIA L40S")
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [device.memory_used_bytes // 2**20 for device in visible_devices(environment)] == indices


def test_a_device_has_the_drivers_figures_in_bytes(machine):
    machine("NVIDIA H200")
    (device,) = visible_devices({})
    assert (device.name, device.uuid) == ("NVIDIA H200", "GPU-0f0e-aa")
    assert device.memory_total_bytes == 2**30


@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError(),
        subprocess.TimeoutExpired("nvidia-smi", 30),
        subprocess.CalledProcessError(9, "nvidia-smi"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_without_a_driver_there_is_no_gpu(monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(subprocess, "run", fail)
    assert visible_devices({}) == ()
    assert detect_hardware({}) == hardware("cpu")


def test_detection_counts_what_is_visible(machine):
    machine(*["NVIDIA H100 80GB HBM3"] * 4)
    assert detect_hardware({}) == hardware("h100", 4)
    assert detect_hardware({"CUDA_VISIBLE_DEVICES": "0,3"}) == hardware("h100", 2)
    assert detect_hardware({"CUDA_VISIBLE_DEVICES": ""}) == hardware("cpu")


def test_detection_refuses_different_gpus(machine):
    machine("NVIDIA H200", "NVIDIA A40")
    assert message_of(HardwareMismatchError, detect_hardware, {}) == (
        "this machine has different GPUs (NVIDIA A40, NVIDIA H200), which train at the pace of the "
        "slowest: choose equal ones with CUDA_VISIBLE_DEVICES"
    )
    assert detect_hardware({"CUDA_VISIBLE_DEVICES": "0"}) == hardware("h200")


def test_what_is_declared_and_there_passes(machine):
    machine("NVIDIA H200", "NVIDIA H200")
    check_hardware(hardware("h200", 2), {})
    check_hardware(hardware("h200", 1, num_nodes=4), {})
    check_hardware(hardware("cpu", 8), {})


@pytest.mark.parametrize(
    ("devices", "declared", "found"),
    [
        (
            [],
            ("h100", 2),
            "this machine has no GPU: run it on one that has, or try things out with --gpu-type "
            "cpu",
        ),
        (["NVIDIA H200"], ("h100", 1), "this machine has 'NVIDIA H200': give --gpu-type h200"),
        (
            ["NVIDIA L40S", "NVIDIA L40"],
            ("l40s", 2),
            "this machine has 'NVIDIA L40': give --gpu-type l40",
        ),
        (["NVIDIA H200"], ("h200", 2), "only 1 are visible here: give --gpus-per-node 1"),
    ],
)
def test_a_declaration_that_is_not_the_machines_is_refused(machine, devices, declared, found):
    machine(*devices)
    assert message_of(HardwareMismatchError, check_hardware, hardware(*declared), {}) == (
        f"--gpu-type {declared[0]} --gpus-per-node {declared[1]} was given, but {found}"
    )
