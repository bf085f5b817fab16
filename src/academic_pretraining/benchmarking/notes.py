"""Finished probes of an unfinished setting: who kills the script loses only the one in progress."""

import contextlib
import json
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from academic_pretraining.benchmarking.probes import Outcome, ProbeResult
from academic_pretraining.benchmarking.storage import read_finite, write_whole
from academic_pretraining.errors import ILL_SHAPED

# A machine changes: what was timed before goes on only with what is timed soon after.
_LASTS_SECONDS = 24 * 3600.0
_KEPT = (Outcome.OK, Outcome.OUT_OF_MEMORY, Outcome.COMPILE_FAILED)


class Notes:
    """A file of one setting's probes, a line each.

    Args:
        path: of the file; nobody else may use it meanwhile.
        where: what else must be the same for a probe to count: host, devices, effort.

    Attributes:
        company: who else was on the GPUs, allowed to be, when the first of these probes ran.
    """

    def __init__(self, path: Path, where: dict[str, Any]) -> None:
        self._path = path
        # As it will be read.
        self._where = json.loads(json.dumps(where))
        self._results: list[ProbeResult] = []
        self._began_at = time.time()
        self.company = ""

    def recall(self) -> list[ProbeResult]:
        """Read what a killed process left; nothing where that does not fit or cannot be read."""
        with contextlib.suppress(OSError, *ILL_SHAPED):
            # Others may have written it.
            head, *lines = read_finite(self._path, "notes").splitlines()
            head = json.loads(head)
            if head["where"] == self._where and time.time() - head["began_at"] < _LASTS_SECONDS:
                self._began_at = head["began_at"]
                self.company = str(head["company"])
                # What comes before a broken line counts.
                for line in lines:
                    self._results.append(_checked(ProbeResult.from_dict(json.loads(line))))
        return list(self._results)

    def add(self, results: list[ProbeResult]) -> None:
        """Keep answers that are not known yet; a disk that takes no more costs only this."""
        new = [r for r in results if r.outcome in _KEPT and r not in self._results]
        if not new:
            return
        self._results += new
        head = {"where": self._where, "began_at": self._began_at, "company": self.company}
        lines = [json.dumps(line) for line in (head, *(r.to_dict() for r in self._results))]
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, "\n".join(lines) + "\n")

    def forget(self) -> None:
        """Let go of all that was noted; the next process begins anew."""
        self._results.clear()
        with contextlib.suppress(OSError):
            self._path.unlink()


def _checked(result: ProbeResult) -> ProbeResult:
    """Refuse what cannot be computed with, whoever wrote it.

    Raises:
        TypeError: a figure is none.
    """
    for part in (result, result.probe, *result.samples, *result.communication):
        for field in fields(part):
            value = getattr(part, field.name)
            if field.type in (int, float) and not isinstance(value, int | float):
                raise TypeError(f"{field.name} is {value!r:.80}")
    return result
