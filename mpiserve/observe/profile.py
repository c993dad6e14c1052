"""Show the report of a profiled session when it ends, in whatever way."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.observe import parts, summary, trace

if TYPE_CHECKING:
    from mpiserve._lib import core

logger = logging.getLogger("mpiserve")


class Profile:
    """What the ranks of a session measure, if MPISERVE_PROFILE is set.

    Args:
        lib: The session handle of this rank.
    """

    def __init__(self, lib: core.Session) -> None:
        self._known: dict[str, Any] = lib.profile()
        self._last: summary.Report | None = None
        self._shown = False

    def report(self) -> summary.Report:
        """Return the report, as of now; {} if the session is not profiled."""
        if not self._known["on"]:
            return {}
        if self._last is not None:
            return self._last
        return summary.report(parts.read(self._folder, self._known["run"]))

    def show(self, *, complete: bool = False) -> None:
        """Print the report and write it, once, on the rank that is to do so.

        Args:
            complete: The session has closed: parts are no longer needed, if all have them ended.
        """
        if self._shown or not self._known["on"] or not self._known["reports"]:
            return
        self._shown = True
        made = self.report()
        with suppress(OSError):  # nobody reads it any more
            said = summary.text(made) + self._trace()
            sys.stderr.write(f"mpiserve: {said}\n")  # at once, as ranks share it
            sys.stderr.flush()
        try:
            summary.write(made, Path(self._known["file"]))
        except OSError as error:
            logger.warning("the report of MPISERVE_PROFILE cannot be written: %s", error)
            return
        if complete and made and not made["missing"] and not made["open"]:
            self._last = made
            _remove(self._folder, self._known["run"])

    def _trace(self) -> str:
        """Say where the traces of the ranks are; "": there are none."""
        heads = trace.heads(self._folder, self._known["run"])
        if not heads:
            return ""
        lost = trace.lost(heads)
        lines = ["", f"python -m mpiserve trace merge {self._folder}", *[lost] * bool(lost)]
        return "\nmpiserve: ".join(lines)

    @property
    def _folder(self) -> Path:
        return parts.folder_of(self._known["file"])

    def watched(self, watch: Callable[[], None] | None) -> Callable[[], None] | None:
        """Return what a server that has begun calls after each step, in place of a function.

        The first call has SIGTERM, which launchers send first, show the report. Before, this rank
        may be in a call that waits for others for long, and would not end.
        """
        if not self._known["on"] or not self._known["reports"]:
            return watch
        begun = False

        def look() -> None:
            nonlocal begun
            if not begun:
                begun = True
                self._catch()
            if watch:
                watch()

        return look

    def _catch(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            rank = os.getpid()
            signal.signal(signal.SIGTERM, lambda number, frame: self._end(number, rank))

    def _end(self, number: int, rank: int) -> None:
        """End as the signal would have, which a child that a model has forked gets too."""
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == rank:
            with suppress(Exception):
                self.show()
        os.kill(os.getpid(), number)


def _remove(folder: Path, run: int) -> None:
    """Remove the parts of a session, and their folder if nothing else is there."""
    with suppress(OSError):
        for path in [*parts.files(folder)]:
            if parts.run_of(path) == run:
                path.unlink()
        folder.rmdir()
