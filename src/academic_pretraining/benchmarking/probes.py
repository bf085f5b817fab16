"""What a probe is asked and what it answers; plain data, so that it crosses processes as JSON."""

import enum
from dataclasses import asdict, dataclass
from typing import Any


class Purpose(enum.StrEnum):
    """What a probe is for."""

    MEMORY = "memory"
    TIMING = "timing"
    COMMUNICATION = "communication"
    SAVING = "saving"


OPTIONAL = (Purpose.COMMUNICATION, Purpose.SAVING)
"""What comes last, and whose failure costs nothing but itself."""


class Outcome(enum.StrEnum):
    """How a probe ended."""

    OK = "ok"
    OUT_OF_MEMORY = "out of memory"
    HOST_OUT_OF_MEMORY = "host out of memory"
    COMPILE_FAILED = "compile failed"
    CRASHED = "crashed"
    HUNG = "hung"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One short run of the Trainer.

    An epoch of the run is `high_steps` optimizer steps with `high` micro-batches each and, where
    `low` is given, a last one with `low`: the Trainer's own remainder of an epoch.

    Attributes:
        purpose: memory, timing, looking at communication, or saving a checkpoint.
        micro_batch_size: examples a GPU takes at once.
        high: gradient accumulation steps of most steps.
        low: accumulation of each epoch's last step; 0 for none.
        high_steps: optimizer steps with `high` in each epoch.
        epochs: repetitions.
        enough_seconds: after the first step; no further epoch begins when they are over. `None`
            for no such limit.
        warm_up_steps: optimizer steps at the beginning that are not timed.
        compile: whether `torch.compile` is asked for.
        deadline_seconds: from the start of the probe, model building and compilation included.
    """

    purpose: Purpose
    micro_batch_size: int
    high: int
    low: int = 0
    high_steps: int
    epochs: int = 1
    enough_seconds: float | None = None
    warm_up_steps: int = 2
    compile: bool
    deadline_seconds: float

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run, at most."""
        return self.epochs * (self.high_steps + (self.low > 0))

    @property
    def micro_batches_per_epoch(self) -> int:
        """Micro-batches of one GPU in one epoch."""
        return self.high_steps * self.high + self.low

    @property
    def variant(self) -> tuple[int, bool]:
        """Micro-batch size and compilation: timings alike in both are of the same training."""
        return self.micro_batch_size, self.compile

    @property
    def description(self) -> str:
        """What it does, for a progress display."""
        compiled = ", compiled" if self.compile else ""
        return f"{self.purpose} at micro-batch {self.micro_batch_size}{compiled}"


@dataclass(frozen=True, kw_only=True)
class StepSample:
    """One timed optimizer step.

    Attributes:
        accumulation: micro-batches of one GPU in it.
        seconds: from the end of the step before to its own end, at the slowest rank.
        data_seconds: of it, fetching the micro-batches before the first one runs.
        optimizer_seconds: of it, from the last gradient to the end of the step. DeepSpeed steps
            inside the backward pass, where this cannot see it.
        skipped: whether the optimizer step was skipped because of an fp16 overflow.
        last_of_epoch: whether its data loader ended with it.
    """

    accumulation: int
    seconds: float
    data_seconds: float
    optimizer_seconds: float
    skipped: bool
    last_of_epoch: bool = False

    @property
    def fetched(self) -> int:
        """Micro-batches fetched in it: accelerate is one ahead, until there is no more."""
        return self.accumulation - self.last_of_epoch


@dataclass(frozen=True, kw_only=True)
class CommunicationSample:
    """One profiled optimizer step.

    Attributes:
        accumulation: micro-batches of one GPU in it.
        kernels: how many of NCCL's kernels ran on the GPU.
        seconds: their durations, added up.
    """

    accumulation: int
    kernels: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What became of a probe.

    Attributes:
        probe: what was asked.
        outcome: how it ended.
        samples: the timed steps; warm-up is left out.
        peak_bytes: largest memory allocated on any device (resident memory on a CPU).
        reserved_bytes: largest memory that the allocator held on any device.
        leftover_bytes: device memory still allocated after the probe was cleaned up.
        device_bytes: memory of the device (host memory for a CPU).
        requested_bytes: of the allocation that failed, where it says so.
        free_bytes: device memory that was free then.
        others_bytes: device memory that others than this session held then, where that is known.
        graphs: how many graphs `torch.compile` made.
        build_seconds: model, dataset and Trainer.
        warm_up_seconds: until the end of the first optimizer step, compilation included.
        seconds: the whole probe.
        communication: the profiled steps; empty for other purposes.
        save_seconds: writing a checkpoint, at the slowest rank; `None` for other purposes.
        checkpoint_bytes: what was written, all ranks' files on a shared file system.
        save_peak_bytes: largest memory allocated on any device meanwhile.
        other_cpu_share: of the host's cores, what other processes kept busy while steps were
            timed; `None` where nobody looked, as for other purposes and under a quota.
        cause: of a failure, the exception in one line.
        transient: of a failure, whether a second try may end otherwise.
        log: of a failure, the log of the rank that failed first.
    """

    probe: Probe
    outcome: Outcome
    samples: tuple[StepSample, ...] = ()
    peak_bytes: int = 0
    reserved_bytes: int = 0
    leftover_bytes: int = 0
    device_bytes: int = 0
    requested_bytes: int | None = None
    free_bytes: int | None = None
    others_bytes: int | None = None
    graphs: int = 0
    build_seconds: float = 0.0
    warm_up_seconds: float = 0.0
    seconds: float = 0.0
    communication: tuple[CommunicationSample, ...] = ()
    save_seconds: float | None = None
    checkpoint_bytes: int = 0
    save_peak_bytes: int = 0
    other_cpu_share: float | None = None
    cause: str = ""
    transient: bool = True
    log: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Write as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ProbeResult":
        """Read what `to_dict` wrote."""
        probe = Probe(**{**data["probe"], "purpose": Purpose(data["probe"]["purpose"])})
        samples = tuple(StepSample(**sample) for sample in data["samples"])
        communication = tuple(CommunicationSample(**s) for s in data["communication"])
        changed = {"probe": probe, "samples": samples, "communication": communication}
        return cls(**{**data, **changed, "outcome": Outcome(data["outcome"])})
