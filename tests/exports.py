"""An exported setting for tests to break, and ways to break any JSON."""

import hashlib
import json
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from in_process import COMMANDS, InProcess

many = settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
READERS = ("training.py", "verify.py")
FILES = ("args.json", "args.setting.json")


class Exported:
    """An exported setting that a test breaks, one way after another."""

    def __init__(self, place: InProcess) -> None:
        self.place = place
        self.good = {name: (place.folder / name).read_bytes() for name in FILES}
        self.fields, self.setting = (json.loads(self.good[name]) for name in FILES)

    def refuses(self, script: str, **contents: bytes) -> str:
        self.write(**contents)
        return self.place.refuses(script, *COMMANDS[script])

    def refuses_fields(self, script: str, fields: str) -> str:
        """Break the arguments alone: their hash is right."""
        digest = hashlib.sha256(fields.encode()).hexdigest()
        setting = json.dumps(self.setting | {"arguments_sha256": digest})
        return self.refuses(script, args=fields.encode(), setting=setting.encode())

    def write(self, **contents: bytes) -> None:
        for name, content in self.good.items():
            (self.place.folder / name).write_bytes(content)
        for name, content in contents.items():
            path = "args.json" if name == "args" else "args.setting.json"
            (self.place.folder / path).write_bytes(content)

    def write_one(self, name: str, content: bytes) -> None:
        self.write(**{"args" if name == "args.json" else "setting": content})


def truncated(content: bytes, at: int) -> bytes:
    return content[: at % (len(content) - 1)]


def with_a_byte(content: bytes, at: int, byte: bytes) -> bytes:
    at %= len(content)
    return content[:at] + byte + content[at:]


def without_a_mark(content: bytes, at: int) -> bytes:
    """Take out a bracket, a colon or a quote, without which it is no JSON."""
    marks = [i for i, byte in enumerate(content) if byte in b'{}:"']
    at = marks[at % len(marks)]
    return content[:at] + content[at + 1 :]


BREAKS: dict[str, Callable[[bytes, int], bytes]] = {
    "truncated": truncated,
    "no UTF-8": lambda content, at: with_a_byte(content, at, b"\xff"),
    "zero": lambda content, at: with_a_byte(content, at, b"\0"),
    "escape": lambda content, at: with_a_byte(content, at, b"\x1b"),
    "mark": without_a_mark,
}
