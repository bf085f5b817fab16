"""How every script ends: an error is one line and exit status 2, whatever was given."""

import contextlib
import functools
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from academic_pretraining.errors import AcademicPretrainingError, InvalidConfigError, one_line


def answer(
    parse: Callable[..., Any],
    main: Callable[..., int | None],
    arguments: Sequence[str],
    *,
    stopped: str,
) -> int:
    """Run a script's main and say in a line what went wrong; returns the exit status.

    Args:
        parse: calls what it is given with what it finds on the command line; gives what came of it
            and the arguments left over, as `tyro.cli` does with `return_unknown_args`.
        main: what the script does.
        arguments: of the command line.
        stopped: what to say when it was interrupted.
    """
    output = _keep_open("stdout")
    _keep_open("stderr")
    try:
        status = _status(parse, main, arguments, stopped)
    except SystemExit as end:
        # From the parser: --help, or what it cannot take.
        if isinstance(end.code, str):
            raise
        status = end.code or 0
    sys.stdout.flush()
    if not output or not output.error or isinstance(output.error, BrokenPipeError):
        return status
    reason = output.error.strerror
    print(
        f"error: standard output cannot be written ({reason}): send it elsewhere", file=sys.stderr
    )
    return status or 1


def workspace_dir(environment: Mapping[str, str]) -> Path:
    """Folder of results: `TANGO_WORKSPACE_DIR`, else `tango_workspace/`."""
    return Path(environment.get("TANGO_WORKSPACE_DIR") or "tango_workspace")


class _Output(io.TextIOWrapper):
    """A standard stream; what cannot be written is dropped, and the first reason kept.

    A full disk behind a log, or a reader that is gone, does not end a measurement.
    """

    error: OSError | None = None

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.error = self.error or error
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.error = self.error or error


def _keep_open(name: str) -> _Output | None:
    """Have the process's own stream take whatever is written; others are left as they are."""
    stream = getattr(sys, name)
    output = None
    if stream is None:
        # It was closed before the script began.
        output = _Output(io.FileIO(os.devnull, "w"), encoding="utf-8")
    elif stream is getattr(sys, f"__{name}__"):
        output = _Output(
            stream.buffer,
            encoding=stream.encoding,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
    if output:
        setattr(sys, name, output)
    # What a terminal's encoding lacks, as the lines of a table, is no reason to say nothing.
    if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return output


def _status(
    parse: Callable[..., Any],
    main: Callable[..., int | None],
    arguments: Sequence[str],
    stopped: str,
) -> int:
    @functools.wraps(main)
    def bind(*values: Any, **named: Any) -> Callable[[], int | None]:
        return functools.partial(main, *values, **named)

    try:
        bound, unknown = _parsed(parse, bind)
        _refuse_repeated(arguments)
        if unknown := unknown or ["--"] * ("--" in arguments):
            raise InvalidConfigError(f"{unknown[0]} is unknown here: --help lists the flags")
        return bound() or 0
    except AcademicPretrainingError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # Impatience would end in a traceback what is ending anyway.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print(f"stopped: {stopped}", file=sys.stderr)
        return 130


def _parsed(parse: Callable[..., Any], bind: Callable[..., Any]) -> Any:
    """Parse; what the parser draws a box around for people is refused in a line like the rest."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(bind, return_unknown_args=True)
    except (AssertionError, OSError) as error:
        # Of its own flags: a shell that it does not know, a file that it cannot write.
        reason = f"{error}".rstrip(".") or "no such command"
        raise InvalidConfigError(f"{reason}: --help lists the flags") from error
    except SystemExit as end:
        if end.code != 2:
            raise
        box, said = said.getvalue(), io.StringIO()
        raise InvalidConfigError(f"{_without_frame(box)}: --help lists the flags") from None
    finally:
        sys.stderr.write(said.getvalue())


def _without_frame(box: str) -> str:
    """Give what stands in a box of tyro's as a sentence, without the help that it adds."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"^│ ?| *│$", "", line) for line in text.splitlines() if line[:1] not in "╭╰"]
    parts = []
    for part in re.split(r"^─+$", "\n".join(lines), flags=re.MULTILINE):
        part = part.strip("\n")
        if part.startswith("Missing from"):
            # Flags, each with what it means further in.
            parts.append(f"missing: {', '.join(re.findall(r'^ {4}(--[^ ]+)', part, re.M))}")
        elif part.startswith("Unrecognized options"):
            parts.append(f"unknown: {' '.join(part.split()[2:])}")
        elif not part.startswith(("For full helptext", "Argument helptext")):
            reason = part.partition("Got errors:")[0]
            parts.append(" ".join(reason.split()).removeprefix("Error parsing ").removesuffix("."))
    return "; ".join(parts)


def _refuse_repeated(arguments: Sequence[str]) -> None:
    """Refuse what would silently take the last of two values."""
    given: set[str] = set()
    for argument in arguments:
        if not argument.startswith("--") or argument == "--":
            continue
        name = argument.partition("=")[0].replace("_", "-")
        switch = "--" + name.removeprefix("--").removeprefix("no-")
        if switch in given:
            raise InvalidConfigError(f"{switch} is given twice: give it once")
        given.add(switch)
