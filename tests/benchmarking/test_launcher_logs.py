"""The log server of torchrunx, for real."""

import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from logging.handlers import SocketHandler
from threading import Thread

import psutil
import pytest
from torchrunx.utils import log_streaming

from academic_pretraining.benchmarking.launcher_logs import accept_plain_log_records_only


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def server(monkeypatch):
    """Serve log records to a handler, in a thread."""
    monkeypatch.setattr(log_streaming, "pickle", pickle)
    kept = Kept()
    receiver = log_streaming._LogRecordSocketReceiver("127.0.0.1", 0, [kept])
    thread = Thread(target=receiver.serve_forever, daemon=True)
    thread.start()
    yield receiver.server_address[1], kept
    receiver.shutdown()
    receiver.server_close()


def send(port: int, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(struct.pack(">L", len(data)) + data)
        connection.shutdown(socket.SHUT_WR)
        # The server ends the connection when it has read.
        assert connection.recv(1) == b""


@pytest.mark.parametrize("plain", [False, True])
def test_nothing_that_is_sent_is_run(server, tmp_path, capfd, plain):
    port, kept = server
    path = tmp_path / "made"
    if plain:
        accept_plain_log_records_only()
    send(port, pickle.dumps(Exploit(str(path))))
    # Without it, it is: when that changes, this module is not needed any more.
    assert path.exists() == (not plain)
    assert kept.records == []
    assert "has no place in a log record" in capfd.readouterr().err or not plain


def test_what_workers_say_arrives(server):
    port, kept = server
    accept_plain_log_records_only()
    record = logging.LogRecord("root", logging.INFO, "f.py", 3, "step %d", (7,), None)
    log_streaming.WorkerLogRecord.from_record(record, "node1", 0)
    handler = SocketHandler("127.0.0.1", port)
    handler.emit(record)
    handler.close()
    until = time.monotonic() + 10.0
    while not kept.records and time.monotonic() < until:
        time.sleep(0.01)
    [arrived] = kept.records
    assert (arrived.name, arrived.getMessage()) == ("torchrunx.node1.0", "step 7")


SERVING = """
import time
from multiprocessing import Event, get_context

from torchrunx import launcher
from academic_pretraining.benchmarking.launcher_logs import end_log_server_with_parent

end_log_server_with_parent()
said = launcher.LoggingServerArgs(list, "127.0.0.1", 0).serialize()
target = launcher.start_logging_server
server = get_context("fork").Process(target=target, args=(said, Event()), daemon=True)
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def test_a_server_ends_with_who_started_it():
    process = subprocess.Popen([sys.executable, "-c", SERVING], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = psutil.Process(int(process.stdout.readline()))
    assert server.ppid() == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs([server], timeout=30)[1] == []
    # Nobody else holds the other end.
    assert process.stdout.read() == ""
