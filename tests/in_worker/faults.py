"""Faults of the workers of a session, on the ranks that `FAULTY_RANKS` names.

Some happen in the place of a probe while the other ranks wait in a collective, for half an hour
if nobody ends them; others happen inside a real training.
"""

import ctypes
import functools
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch._inductor.compile_fx
import torch.distributed as dist
from faulty import folder, in_forward, instead_of_a_probe, is_faulty, mark, now
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from academic_pretraining.benchmarking import probe
from academic_pretraining.benchmarking.build import build_model_for, synthetic_dataset
from academic_pretraining.benchmarking.storage import write_whole
from academic_pretraining.errors import HardwareMismatchError

# As the allocator, cuBLAS, NCCL and CUDA put it.
DEVICE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.11 GiB "
    "of which 1.50 GiB is free. Including non-PyTorch memory, this process has 77.61 GiB memory "
    "in use."
)
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
NCCL = "NCCL error: unhandled cuda error\nLast error:\nFailed to CUDA calloc async 8 bytes"
NCCL_NETWORK = "NCCL error: remote process exited or there was a network error"


def raises(worker) -> None:
    instead_of_a_probe(worker, _raise)


def raises_unpicklable(worker) -> None:
    instead_of_a_probe(worker, _raise_unpicklable)


def is_killed(worker) -> None:
    instead_of_a_probe(worker, lambda: os.kill(os.getpid(), signal.SIGKILL))


def is_killed_where_nobody_misses_it(worker) -> None:
    instead_of_a_probe(worker, lambda: os.kill(os.getpid(), signal.SIGKILL), _sleep_for_ever)


def loses_its_folder(worker) -> None:
    instead_of_a_probe(worker, lambda: shutil.rmtree(folder()) or _raise())


def segfaults(worker) -> None:
    instead_of_a_probe(worker, lambda: ctypes.string_at(0))


def exits(worker) -> None:
    instead_of_a_probe(worker, lambda: sys.exit(7))


def hangs(worker) -> None:
    instead_of_a_probe(worker, _sleep_for_ever)


def hangs_with_the_interpreter_locked(worker) -> None:
    # Unlike CDLL, it keeps the lock during the call, which waits for a signal.
    instead_of_a_probe(worker, lambda: ctypes.PyDLL(None).pause())


def runs_out_of_memory(worker) -> None:
    instead_of_a_probe(worker, _run_out_of_memory)


def lacks_memory_for_cublas(worker) -> None:
    instead_of_a_probe(worker, lambda: _raise(RuntimeError(CUBLAS)))


def lacks_memory_for_nccl(worker) -> None:
    instead_of_a_probe(worker, lambda: _raise(RuntimeError(NCCL)))


def loses_nccl(worker) -> None:
    instead_of_a_probe(worker, lambda: _raise(RuntimeError(NCCL_NETWORK)))


def runs_out_of_host_memory(worker) -> None:
    instead_of_a_probe(worker, lambda: torch.empty(2**50, dtype=torch.uint8))


def runs_out_of_memory_in_forward(worker) -> None:
    def build(*arguments, **how):
        model = build_model_for(*arguments, **how)
        model.register_forward_pre_hook(lambda *_: _run_out_of_memory_later())
        return model

    mark(worker)
    probe.build_model_for = build


def runs_out_of_memory_in_backward(worker) -> None:
    def build(*arguments, **how):
        model = build_model_for(*arguments, **how)
        next(model.parameters()).register_hook(lambda _: _run_out_of_memory_later())
        return model

    mark(worker)
    probe.build_model_for = build


def runs_out_of_memory_in_the_optimizer(worker) -> None:
    mark(worker)
    register_optimizer_step_pre_hook(lambda *_: _run_out_of_memory_later())


def runs_out_of_memory_in_all_reduce(worker) -> None:
    """Fail where DDP reduces a bucket of gradients."""

    def hook(state, bucket):
        _enter_collective()
        return allreduce_hook(state, bucket)

    def wrap(self, *arguments, **how):
        initialise(self, *arguments, **how)
        self.register_comm_hook(dist.group.WORLD, hook)

    initialise = DistributedDataParallel.__init__
    mark(worker)
    DistributedDataParallel.__init__ = wrap


def runs_out_of_memory_in_all_gather(worker) -> None:
    _in_collectives(worker, "all_gather_single", "all_gather_into_tensor")


def runs_out_of_memory_in_reduce_scatter(worker) -> None:
    _in_collectives(worker, "reduce_scatter_single", "reduce_scatter_tensor")


def fills_the_gpu(worker) -> None:
    in_forward(worker, _run_out_of_memory)


def starves_cublas(worker) -> None:
    """Leave nothing for the handle and the workspace that a thread's first product makes."""
    in_forward(worker, _multiply_in_a_full_gpu)


def starves_nccl(worker) -> None:
    """Leave nothing for the buffers of another communicator."""

    def communicate():
        one = torch.ones(1, device="cuda")
        held = _fill_the_gpu() if is_faulty() else []
        dist.all_reduce(one, group=dist.new_group())
        torch.cuda.synchronize()
        raise AssertionError(f"NCCL found room beside {len(held)} tensors")

    in_forward(worker, communicate)


def pins_too_much(worker) -> None:
    in_forward(worker, lambda: torch.empty(2**45, dtype=torch.uint8, pin_memory=True))


def trips_an_assertion_on_the_gpu(worker) -> None:
    def fault():
        torch.ones(1, device="cuda")[torch.tensor([5], device="cuda")]
        torch.cuda.synchronize()

    in_forward(worker, fault)


def dies_in_training(worker) -> None:
    in_forward(worker, lambda: os.kill(os.getpid(), signal.SIGKILL))


def hangs_while_loading(worker) -> None:
    class Stuck(torch.utils.data.Dataset):
        def __init__(self, dataset):
            self.dataset = dataset

        def __len__(self):
            return len(self.dataset)

        def __getitem__(self, index):
            if is_faulty():
                _sleep_for_ever()
            return self.dataset[index]

    mark(worker)
    probe.synthetic_dataset = lambda *arguments: Stuck(synthetic_dataset(*arguments))


def fails_to_compile(worker) -> None:
    mark(worker)
    _compile_with(lambda: _raise(RuntimeError("no kernel for this")))


def compiles_for_ever(worker) -> None:
    mark(worker)
    _compile_with(_sleep_for_ever)


def is_on_another_gpu(worker) -> None:
    def mismatch(config, cuda):
        raise HardwareMismatchError("GPU type a was declared, but this rank runs on a b")

    worker._check_device = mismatch


_calls = itertools.count()
_collectives = itertools.count(1)


def _run_out_of_memory_later() -> None:
    """Let the first call pass, so that the others are well into the training."""
    if is_faulty() and next(_calls):
        now()
        _run_out_of_memory()


def _enter_collective() -> None:
    """Count the collectives of a rank, and fail in the second of a faulty one."""
    entered = next(_collectives)
    write_whole(folder() / f"rank{os.environ['RANK']}.collectives", str(entered))
    if is_faulty() and entered == 2:
        # The session ends soon after the failure, when a slow rank may not have come so far.
        until = time.monotonic() + 60
        while time.monotonic() < until and not all(
            map(_is_in_second, range(dist.get_world_size()))
        ):
            time.sleep(0.01)
    _run_out_of_memory_later()


def _is_in_second(rank: int) -> bool:
    path = folder() / f"rank{rank}.collectives"
    return path.exists() and int(path.read_text()) >= 2


def _run_out_of_memory():
    if torch.cuda.is_available():
        torch.empty(2**45, dtype=torch.uint8, device="cuda")
    raise torch.OutOfMemoryError(DEVICE)


def _fill_the_gpu() -> list[torch.Tensor]:
    """Allocate until not even 2 MiB are left."""
    held, size = [], torch.cuda.mem_get_info()[0]
    while size >= 2**21:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return held


def _multiply_in_a_full_gpu():
    matrix = torch.ones(64, 64, device="cuda", dtype=torch.float16)
    held = _fill_the_gpu()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(torch.mm, matrix, matrix).result()
    raise AssertionError(f"cuBLAS found room beside {len(held)} tensors")


def _raise(error: Exception | None = None):
    raise error or ZeroDivisionError("the original cause")


def _raise_unpicklable():
    error = ValueError("what no process can be sent")
    error.handle = lambda: None  # pyright: ignore
    raise error


def _sleep_for_ever():
    while True:
        time.sleep(1)


def _in_collectives(worker, *names: str) -> None:
    """Fail where FSDP2 calls a collective, whose name depends on PyTorch's version."""

    def faulty(function):
        @functools.wraps(function)
        def collective(*arguments, **how):
            _enter_collective()
            return function(*arguments, **how)

        return collective

    mark(worker)
    for name in names:
        if hasattr(dist, name):
            setattr(dist, name, faulty(getattr(dist, name)))


def _compile_with(fault: Callable[[], object]) -> None:
    compile_fx = torch._inductor.compile_fx.compile_fx

    def faulty(*arguments, **how):
        if is_faulty():
            now()
            fault()
        return compile_fx(*arguments, **how)

    # What a process traces first takes longest, and would be part of the probe.
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    torch._inductor.compile_fx.compile_fx = faulty
