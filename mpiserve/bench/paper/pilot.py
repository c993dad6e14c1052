"""RADICAL-Pilot beside mpiserve: its session as a child process, in namespaces of its own.

It listens on all interfaces, and leaves services behind: so it gets a network with a loopback
interface alone, and a process namespace that ends with the child.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mpiserve.bench import job
from mpiserve.bench.report import Progress
from mpiserve.errors import Code, Error

HERE = Path(__file__).parent
START, ANSWER = 600.0, 300.0  # seconds
UNSHARE = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
LOOPBACK = 'ip link set lo up && exec "$@"'


def apart(command: list[str]) -> list[str]:
    """Return the command that runs another one in namespaces of its own."""
    unshare = list(UNSHARE) + ["--map-root-user"] * (os.geteuid() != 0)
    return [*unshare, "sh", "-c", LOOPBACK, "sh", *command]


def its_python() -> str:
    """Return the Python of its environment; "": none is named."""
    return os.environ.get("MPISERVE_RADICAL", "")


def missing() -> str:
    """Say why RADICAL-Pilot is left out; "": it is not."""
    python = its_python()
    if not python:
        return "set MPISERVE_RADICAL to the Python of an environment with radical.pilot"
    try:
        command = apart([python, "-c", "import radical.pilot"])
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"MPISERVE_RADICAL={python}: {error}"
    said = (done.stderr.strip().splitlines() or [""])[-1]
    return f"MPISERVE_RADICAL={python}: {said}" if done.returncode else ""


def without_make(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what make exports: bash cannot read it in the scripts that RADICAL-Pilot writes."""
    return {k: v for k, v in environment.items() if not k.startswith(("MAKE", "MFLAGS"))}


class Pilot:
    """A pilot with services. A context manager.

    Args:
        services: How many.
        progress: Where to say what takes long.

    Attributes:
        seconds: For the start of the pilot.
        bootstrap: The bootstrap time of each service, by phase.
    """

    def __init__(self, services: int, progress: Progress) -> None:
        self.seconds = 0.0
        self.bootstrap: list[dict[str, float]] = []
        self._services, self._progress = services, progress
        self._lines: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Pilot:
        self._folder = tempfile.TemporaryDirectory(prefix="mpiserve-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name, "stderr")
        self._process = self._start()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            found = self._answer(START, "bootstrap")
        except BaseException:
            self._end()
            raise
        self.seconds, self.bootstrap = found["pilot"], found["bootstrap"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def measure(self, **wanted: Any) -> dict[str, float]:
        """Run clients: see rp_clients.py, but services is a number. Return what they measured."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._error("has ended") from None
        found: dict[str, float] = self._answer(ANSWER, "measured")["measured"]
        return found

    def _start(self) -> subprocess.Popen[str]:
        folder = self._folder.name
        command = [its_python(), str(HERE / "rp_session.py"), str(self._services), folder]
        own = {"HOME": folder, "RADICAL_REPORT": "FALSE"}  # its sandboxes lie in the home folder
        with self._log.open("w") as log:
            return subprocess.Popen(
                apart(command),
                cwd=folder,
                env=without_make(job.scrubbed(os.environ)) | own,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _answer(self, limit: float, key: str) -> Any:
        """Wait for the answer that has a key; show what is said before it."""
        until = time.monotonic() + limit
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise self._error(f"did not answer in {limit:.0f} s") from None
            if not line:
                raise self._error("ended")
            found = json.loads(line)
            if key in found:
                return found
            self._progress.say(f"RADICAL-Pilot: {found['progress']}")

    def _error(self, what: str) -> Error:
        said = self._log.read_text(errors="replace").strip().splitlines() or [""]
        return Error(Code.ESTATE, f"RADICAL-Pilot {what}: {said[-1]}")

    def _end(self) -> None:
        """End it: all that runs there ends with it."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()
