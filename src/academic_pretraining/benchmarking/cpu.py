"""Sharding without a GPU, for trying things out and for tests."""

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments


def allow_sharding_on_cpu(arguments: TrainingArguments) -> None:
    """Make accelerate shard on CPUs where that is asked for; elsewhere do nothing.

    To be called between TrainingArguments and the model.

    With `use_cpu` accelerate 1.15 ignores FSDP and trains plain DDP without a word, because it
    shards only where its state says several GPUs. The attribute is private;
    tests/benchmarking/test_gloo.py fails when it stops working. Nor does accelerate set up
    DeepSpeed's communication then, so that ZeRO-3 would divide a model by one.

    DeepSpeed 0.19 would look for a compiler on each rank, and build a reduction over shared memory
    that only its inference calls: a minute on first use. tests/benchmarking/test_build.py fails
    where it does again.
    """
    if arguments.use_cpu and arguments.fsdp:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    if arguments.use_cpu and arguments.deepspeed:
        import deepspeed

        deepspeed.ops.__dict__["__compatible_ops__"] = {}
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
