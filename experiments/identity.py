"""What identifies a measurement, so that it is recalled when and only when it still holds."""

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from academic_pretraining.config import TrainingConfig
from academic_pretraining.identity import LIBRARIES, identity_of
from academic_pretraining.models import get_model


def library_versions(config: TrainingConfig) -> dict[str, str]:
    """Versions of what decides a measurement, by distribution; the model's kernels among it."""
    return _installed((*LIBRARIES, *config.recipe.kernel_packages))


def _installed(names: Iterable[str]) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def other_versions(libraries: str, model: str) -> str:
    """Say how a result's versions differ from those installed here; nothing where they do not.

    Args:
        libraries: of the result, as a row has them.
        model: what it is about.
    """
    parts = (part.partition(" ") for part in libraries.split(", "))
    measured = {name: number for name, _, number in parts}
    here = _installed((*LIBRARIES, *get_model(model).kernel_packages))
    names = [name for name in here if measured.get(name, here[name]) != here[name]]
    if not names:
        return ""
    said = [", ".join(f"{name} {of[name]}" for name in names) for of in (measured, here)]
    return f"measured with {said[0]}; here is {said[1]}"


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


def keys_that_do(
    configs: Iterable[TrainingConfig], limits: Mapping[str, Any] | None, *, allow_busy: bool
) -> set[str]:
    """Give the keys of all results that will do for these configurations; see `limits_that_do`."""
    enough = limits_that_do(limits, allow_busy=allow_busy)
    return {cache_key(config, some) for config in configs for some in enough}
