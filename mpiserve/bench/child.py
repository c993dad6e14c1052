"""A program without MPI beside the ranks, which works when it is asked and sleeps otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from types import TracebackType

from mpiserve.bench import job
from mpiserve.errors import Code, Error


class Child:
    """Runs a module of this package; lines go in, lines come out. A context manager."""

    def __init__(self, module: str, *args: str) -> None:
        self._module = module
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"mpiserve.bench.{module}", *args],
            env=job.scrubbed(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._process.kill()
        self._process.communicate()
        self._said.close()

    def hear(self) -> str:
        """Wait for the next line.

        Raises:
            Error: If there is none, with what the program said last.
        """
        line = self._process.stdout.readline() if self._process.stdout else ""
        if line:
            return line.strip()
        self._process.wait()
        self._said.seek(0)
        last = (self._said.read().splitlines() or [""])[-1]
        raise Error(Code.EMODEL, f"mpiserve.bench.{self._module} ended: {last}")

    def ask(self, line: str) -> str:
        """Send a line and wait for the answer."""
        if self._process.stdin:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self.hear()
