"""Print tables and progress: colours and bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 120  # columns of tables, if the width is unknown
HEIGHT = 50
# Launchers give their ranks a pseudo-terminal even if their own output is a file.
LAUNCHED = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "PMI_RANK",
    "PMIX_RANK",
    "MV2_COMM_WORLD_SIZE",
    "PALS_RANKID",
    "ALPS_APP_PE",
    "SLURM_PROCID",
    "FLUX_TASK_RANK",
    "JSM_NAMESPACE_RANK",
)
BATCH = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "COBALT_JOBID", "JOB_ID")
# Progress bars of libraries would fill a log, from several ranks at a time.
SILENT = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

EVERY = 10.0  # the most seconds between two lines of progress
LEAST = 1.0  # the fewest seconds between two lines
PARTS = 10  # lines for each stage


def live(environ: Mapping[str, str] = os.environ, *, stream: Any = None) -> bool:
    """Return whether output goes to a person's terminal, so that colours and bars are useful.

    False with NO_COLOR or TERM=dumb. FORCE_COLOR makes it True in CI, in jobs of batch systems
    and under an MPI launcher, where it is False otherwise.

    Args:
        environ: The environment.
        stream: The output stream; by default stdout.
    """
    if environ.get("NO_COLOR") or environ.get("TERM") in ("dumb", "unknown"):
        return False
    if environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    if any(environ.get(name) for name in (*LAUNCHED, *BATCH)):
        return False
    if environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    stream = sys.stdout if stream is None else stream
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # there is no stream, or it is closed
        return False


def console(*, stderr: bool = False, quiet: bool = False, width: int | None = None) -> Console:
    """Make the rich console for all output.

    Args:
        stderr: Write to stderr, not to stdout.
        quiet: Print nothing.
        width: The width of a line; by default that of the terminal.
    """
    from rich.console import Console

    stream: Any = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # the locale may lack characters of a name
    shown = live(stream=stream)
    if not shown and width is None:
        columns = os.environ.get("COLUMNS", "")
        width = int(columns) if columns.isdecimal() and 0 < int(columns) < 10000 else WIDTH
    return Console(
        stderr=stderr,
        quiet=quiet,
        width=width,
        height=None if shown else HEIGHT,  # without a height, rich uses 80 columns with TERM=dumb
        force_terminal=shown,
        force_interactive=shown,
        color_system="auto" if shown else None,
        no_color=not shown,
        # Names and texts of the user's may look like markup.
        markup=False,
        emoji=False,
    )


class Pace:
    """Decides which steps of a long stage get a line of output.

    These are the last step, and steps after each tenth of the stage or after 10 seconds, but at
    most one a second.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps = max(1, steps)
        self._clock = clock
        self._last, self._part = clock(), 0

    def due(self, done: int) -> bool:
        """Return whether a line is due after `done` steps."""
        now, part = self._clock(), done * PARTS // self._steps
        passed = now - self._last
        if done < self._steps and passed < EVERY and (part == self._part or passed < LEAST):
            return False
        self._last, self._part = now, part
        return True


class Progress:
    """Shows the progress of a program: bars on a terminal, lines elsewhere.

    A context manager.

    Args:
        shown: Whether this process shows progress; only one rank should.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self.console = console(quiet=not shown)
        self._bars = _bars(self.console) if shown and self.console.is_terminal else None
        self._text, self._steps, self._done, self._task = "", 0, 0, 0
        self._pace = Pace(1)

    def __enter__(self) -> Progress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars:
            self._bars.stop()

    def begin(self, text: str, steps: int) -> None:
        """Begin a stage."""
        self._text, self._steps, self._done, self._pace = text, steps, 0, Pace(steps)
        if self._bars:
            self._task = self._bars.add_task(text, total=steps)

    def step(self) -> None:
        """Count one more step of the current stage."""
        self._done += 1
        if self._bars:
            self._bars.advance(self._task)
        elif self._shown and self._pace.due(self._done):
            text = f"{self._text}: step {self._done} of {self._steps}"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _bars(where: Console) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn())
    return Bars(*columns, TimeElapsedColumn(), console=where, refresh_per_second=4)


def silence_libraries() -> None:
    """Disable progress bars of libraries that are imported later, unless the user has set them."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
