"""FSDP without a GPU, for trying things out and for tests."""

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments


def allow_fsdp_on_cpu(arguments: TrainingArguments) -> None:
    """Make accelerate shard on CPUs where FSDP is asked for; elsewhere do nothing.

    With `use_cpu` accelerate 1.15 ignores FSDP and trains plain DDP without a word, because it
    shards only where its state says several GPUs. To be called between TrainingArguments and
    Trainer. The attribute is private; tests/benchmarking/test_gloo.py fails when it stops working.
    """
    if arguments.use_cpu and arguments.fsdp:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
