"""Locks of extensions that DeepSpeed builds on first use, where their owner was killed."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

_PROCESSES = Path("/proc")


def build_locks(environment: Mapping[str, str]) -> list[Path]:
    """Find the locks of extensions that are being built or loaded, by whomever.

    torch makes an empty file beside the extension (torch.utils.file_baton), and whoever comes later
    waits until it is gone: for ever, where its maker was killed.
    """
    root = environment.get("TORCH_EXTENSIONS_DIR", "")
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(root) if root else Path(cache).expanduser() / "torch_extensions"
    with contextlib.suppress(OSError):
        return sorted([*folder.glob("*/lock"), *folder.glob("*/*/lock")])
    return []


def remove_dead_build_locks(environment: Mapping[str, str], *, since: float) -> None:
    """Remove the locks of processes that are gone; to be called after one has killed some.

    Args:
        environment: of the processes.
        since: when the first of them was started, in seconds since the epoch. Older locks may be
            those of another machine with the same home.
    """
    locks = []
    for lock in build_locks(environment):
        with contextlib.suppress(OSError):
            if lock.stat().st_mtime >= since:
                locks.append(lock)
    # Where it cannot be seen who has a lock open, as its owner has, it stays.
    if not locks or not _PROCESSES.is_dir():
        return
    held = _open_files()
    for lock in locks:
        if str(lock.resolve()) not in held:
            with contextlib.suppress(OSError):
                lock.unlink()


def _open_files() -> set[str]:
    found: set[str] = set()
    for process in _PROCESSES.glob("[0-9]*"):
        # It may end meanwhile, or be somebody else's.
        with contextlib.suppress(OSError):
            for link in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(str(link.readlink()))
    return found
