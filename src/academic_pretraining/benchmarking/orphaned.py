"""An end for a process whose parent was killed, and could not end it."""

import os
import threading
import time
from collections.abc import Callable

_POLL_SECONDS = 0.5


def call_when_orphaned(parent: int, end: Callable[[], object]) -> None:
    """Have a thread of this process call `end` once its parent is not process `parent` any more.

    Linux's signal on a parent's death would come with the end of the parent's *thread* already.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        end()

    threading.Thread(target=watch, daemon=True).start()
