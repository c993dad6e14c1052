"""Run a program without MPI beside the ranks, which works on request and sleeps otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from types import TracebackType

from mpiserve.bench import job
from mpiserve.errors import Code, Error


class Child:
    """Runs a module of this package that answers lines with lines. A context manager."""

    def __init__(self, module: str, *args: str) -> None:
        self._module = module
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"mpiserve.bench.{module}", *args],
            env=job.scrubbed(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
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
        self._stderr.close()

    def read_line(self) -> str:
        """Wait for the next line.

        Raises:
            Error: If the program ended, with the last line of its stderr.
        """
        line = self._process.stdout.readline() if self._process.stdout else ""
        if line:
            return line.strip()
        self._process.wait()
        self._stderr.seek(0)
        last = (self._stderr.read().splitlines() or [""])[-1]
        raise Error(Code.EMODEL, f"mpiserve.bench.{self._module} ended: {last}")

    def request(self, line: str) -> str:
        """Write a line and wait for the answer."""
        if self._process.stdin:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self.read_line()
