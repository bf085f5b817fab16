"""Locks of extensions that DeepSpeed builds on first use, where their owner was killed."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import psutil

from academic_pretraining.benchmarking.storage import found_in


def build_locks(environment: Mapping[str, str]) -> list[Path]:
    """Find the locks of extensions that are being built or loaded, by whomever.

    torch makes an empty file beside the extension (torch.utils.file_baton), and whoever comes later
    waits until it is gone: for ever, where its maker was killed.
    """
    root = environment.get("TORCH_EXTENSIONS_DIR", "")
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(root) if root else Path(cache).expanduser() / "torch_extensions"
    return [*found_in(folder, "*/lock"), *found_in(folder, "*/*/lock")]


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
    if not locks:
        return
    try:
        processes = list(psutil.process_iter(["open_files"]))
    except OSError:
        # Where it cannot be seen who has a lock open, as its owner has, it stays.
        return
    held = {file.path for process in processes for file in process.info["open_files"] or ()}
    for lock in locks:
        if str(lock.resolve()) not in held:
            with contextlib.suppress(OSError):
                lock.unlink()
