"""Reading JSON that others may have written: what is ambiguous or no number is refused."""

import json
import math
from collections.abc import Iterable
from typing import Any


def loads(text: str) -> Any:
    """Read JSON, and nothing that only Python takes for it.

    Raises:
        ValueError: it is none, a name comes twice, a number is none or does not fit, or it is
            nested too deeply.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it says {name!r} twice")
        found[name] = value
    return found


def _finite(figure: str) -> float:
    if not math.isfinite(number := float(figure)):
        raise ValueError(f"{figure} is no finite number")
    return number
