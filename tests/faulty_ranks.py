"""What goes wrong on ranks of a session, for tests with and without GPUs."""

import csv
import dataclasses
import os
from pathlib import Path

from academic_pretraining.benchmarking.effort import QUICK, Effort
from academic_pretraining.benchmarking.probes import Outcome, ProbeResult
from academic_pretraining.methods import Method, Sharding

MEMORY = "OutOfMemoryError: CUDA out of memory."
PLAIN = Method()
SHARDED = Method(sharding=Sharding.FSDP_FULL_SHARD)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens on which ranks and how it must be recorded.

    Attributes:
        name: function of in_worker/faults.py.
        outcome, cause: as recorded; the cause from its beginning.
        ranks: the faulty ones.
        method: what is trained meanwhile.
        effort: how long that may take.
    """

    name: str
    outcome: Outcome
    cause: str
    ranks: str = "1"
    method: Method = PLAIN
    effort: Effort = QUICK

    def __str__(self) -> str:
        return f"{self.name} on {self.ranks} with {self.method.label}"


def note(fault: Fault, result: ProbeResult, seconds: float | None) -> None:
    """Add what became of a fault, and how long that took, to the file FAULTS_CSV."""
    if path := os.environ.get("FAULTS_CSV"):
        said = result.cause.partition("\n")[0][:80]
        with Path(path).open("a", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerow(
                [fault, result.outcome, said, "" if seconds is None else f"{seconds:.1f}"]
            )
