"""What identifies a measurement, so that it is recalled when and only when it still holds."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from academic_pretraining.config import TrainingConfig
from academic_pretraining.records import LIBRARIES, identity_of


def library_versions(config: TrainingConfig) -> dict[str, str]:
    """Versions of what decides a measurement, by distribution; the model's kernels among it."""
    versions = {}
    for name in (*LIBRARIES, *config.recipe.kernel_packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def limits_that_do(
    limits: Mapping[str, Any] | None, *, allow_busy: bool
) -> tuple[dict[str, Any], ...]:
    """Give the limits under which a result will do, the best first; see `cache_key`.

    Args:
        limits: that the user asked for.
        allow_busy: whether a result will do, too, that others may have disturbed.
    """
    alone = dict(limits or {})
    return (alone, alone | {"allow_busy_gpus": True}) if allow_busy else (alone,)


def cache_key(config: TrainingConfig, limits: Mapping[str, Any] | None = None) -> str:
    """Write what identifies a measurement as one canonical JSON string.

    That is what `identity_of` says, and the library versions.

    Args:
        config: what is measured.
        limits: what the user asked the search to keep to, by the field of `Effort`; a search
            without limits is another measurement than one with them.
    """
    identity = identity_of(config) | {"versions": library_versions(config)}
    if limits:
        identity["limits"] = dict(limits)
    return json.dumps(identity, sort_keys=True, separators=(",", ":"))
