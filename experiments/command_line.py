"""How every script ends: an error is one line and exit status 2, whatever was given."""

import functools
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

from academic_pretraining.errors import AcademicPretrainingError, InvalidConfigError, one_line


def answer(
    parse: Callable[[Callable[..., int | None]], int | None],
    main: Callable[..., int | None],
    arguments: Sequence[str],
    *,
    stopped: str,
) -> int:
    """Run a script's main and say in a line what went wrong; returns the exit status.

    Args:
        parse: calls what it is given with what it finds on the command line.
        main: what the script does.
        arguments: of the command line.
        stopped: what to say when it was interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding lacks, as the lines of a table, is no reason to say nothing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    @functools.wraps(main)
    def checked(*values: Any, **named: Any) -> int | None:
        _refuse_repeated(arguments)
        return main(*values, **named)

    try:
        return parse(checked) or 0
    except AcademicPretrainingError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped: {stopped}", file=sys.stderr)
        return 130


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
