"""Reading JSON that others may have written: what is ambiguous or no number is refused."""

import json
import math
from collections.abc import Sequence
from typing import Any


def loads(text: str) -> Any:
    """Read JSON, and nothing that only Python takes for it.

    Raises:
        ValueError: it is none, it begins with a byte order mark, a name comes twice, a number is
            none or does not fit, or it is nested too deeply.
    """
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark: save it as UTF-8 without one")
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it says {next(n for n in names if names.count(n) > 1)!r} twice")
    return found


def _finite(figure: str) -> float:
    if not math.isfinite(number := float(figure)):
        raise ValueError(f"{figure} is no finite number")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite)
