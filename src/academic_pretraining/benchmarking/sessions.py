"""Sessions one after another, the next one launching while the one before still measures."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from academic_pretraining.benchmarking.launch import Launched, launch
from academic_pretraining.benchmarking.scratch import remove_abandoned, session_folder
from academic_pretraining.gpus import Hardware
from academic_pretraining.occupancy import Company, nobody_else


class Sessions:
    """Where sessions run.

    Launching one takes 20 to 30 seconds, most of it for loading libraries, which needs no GPU.

    Args:
        scratch: folder for temporary ones, shared by all nodes; logs of failures stay there.
        alone: entered for as long as a setting uses the devices; tells who else is there, and
            raises where they will not do.
        ahead: whether to launch the next session while one measures, which takes about one core
            for each rank for half a minute.

    Attributes:
        more: whether another setting will follow; the caller says so.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        alone: Callable[[], AbstractContextManager[Company]] = nobody_else,
        ahead: bool = False,
    ) -> None:
        self.scratch = scratch
        self.alone = alone
        self.more = False
        self._ahead = ahead
        self._waiting: tuple[Launched, ExitStack] | None = None

    @contextmanager
    def open(self, hardware: Hardware) -> Iterator[Launched]:
        """Give a session for this hardware; it is over, and its folder gone, in the end.

        Raises:
            OSError: its folder cannot be made, or its process not be started.
        """
        if self._waiting and self._waiting[0].hardware != hardware:
            self.close()
        launched, owned = self._waiting or self._launch(hardware)
        self._waiting = None
        with owned:
            yield launched

    def launch_ahead(self, hardware: Hardware) -> None:
        """Launch the next session, where one will follow; failing to costs nothing yet."""
        if self._ahead and self.more and self._waiting is None:
            with contextlib.suppress(OSError):
                self._waiting = self._launch(hardware)

    def close(self) -> None:
        """End a session that was launched for nothing."""
        if self._waiting:
            self._waiting[1].close()
        self._waiting = None

    def _launch(self, hardware: Hardware) -> tuple[Launched, ExitStack]:
        remove_abandoned(self.scratch)
        with ExitStack() as owned:
            directory = owned.enter_context(session_folder(self.scratch))
            launched = launch(hardware, directory=directory)
            owned.callback(launched.end)
            return launched, owned.pop_all()
