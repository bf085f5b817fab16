"""What a rank does when its deadline comes: it writes its stacks down by itself.

So it needs nobody to ask for them, who on another node could not. The watch is one of C, which the
interpreter's lock does not hold up.
"""

import contextlib
import faulthandler
import sys
from collections.abc import Iterator

# Of the session's parent, from the launch to the first probe and between two of them.
START_SECONDS = 300.0
# How long before a deadline the stacks are written; the parent waits as long again.
AHEAD_SECONDS = 1.0
# A rank begins to count when its libraries are loaded, and the parent from the launch on.
_STARTED_SHARE = 0.8


def dump_if_not_begun() -> None:
    """Write the stacks where no probe begins within the time that the parent allows."""
    _dump_later(_STARTED_SHARE * START_SECONDS)


@contextlib.contextmanager
def dumped_if_not_done(deadline_seconds: float) -> Iterator[None]:
    """Write the stacks just before a deadline, unless it is over by then."""
    _dump_later(deadline_seconds - min(AHEAD_SECONDS, deadline_seconds / 2))
    try:
        yield
    finally:
        dump_if_not_begun()


def _dump_later(seconds: float) -> None:
    # The rank's log.
    faulthandler.dump_traceback_later(seconds, file=sys.stderr)
