"""torchrunx's log server, kept from running what it is sent and from outliving who started it."""

import io
import os
import pickle
from types import SimpleNamespace
from typing import Any

from torchrunx import launcher
from torchrunx.utils import log_streaming

from academic_pretraining.benchmarking.orphaned import call_when_orphaned


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text and what holds them; refuses everything that has a class."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} has no place in a log record")


def _loads(data: bytes) -> Any:
    return _PlainUnpickler(io.BytesIO(data)).load()


def accept_plain_log_records_only() -> None:
    """Have the log server of torchrunx, which this process will start, read data alone.

    torchrunx 0.4 listens on the host's own address for log records and unpickles whatever
    connects, so that any user of the network could run code here. What `logging` sends is plain.
    """
    # A private name: tests/benchmarking/test_launcher_logs.py fails when it is not what reads.
    setattr(log_streaming, "pickle", SimpleNamespace(loads=_loads))  # noqa: B010


def end_log_server_with_parent() -> None:
    """Have the log server, which torchrunx 0.4 forks, end when this process was killed.

    It would listen for ever, and hold the standard output.
    """
    parent = os.getpid()
    serve = log_streaming.start_logging_server

    def start_logging_server(*arguments: Any) -> None:
        call_when_orphaned(parent, lambda: os._exit(1))
        serve(*arguments)

    # A private name: tests/faults/test_trainings_killed.py fails when it is not what serves.
    setattr(launcher, "start_logging_server", start_logging_server)  # noqa: B010
