"""A rank's side of a capture: starts the writer, and has the library copy rows for it."""

from __future__ import annotations

import json
import logging
import mmap
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.config.capture import CaptureConfig, wanted
from mpiserve.errors import Error
from mpiserve.failure import describe

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve._lib.ring import Ring
    from mpiserve.config import Config, ServiceConfig

logger = logging.getLogger("mpiserve")

STOPS = "the capture has stopped (%s): rows are missing from now on, and the run goes on"
START_S = 10.0
END_S = 30.0  # that a rank waits for its writer, which then goes on alone
GIT_S = 2.0
ATTRIBUTE = 60_000  # HDF5 has at most 64 KiB


def of_rank(lib: core.Session, config: Config) -> Capture | None:
    """Return what captures the services of a head; None: they are not captured."""
    found = wanted(config)
    if found is None:
        return None
    text = config.model_dump_json(exclude_none=True)
    about = {"configuration": text if len(text) < ATTRIBUTE else "", **versions()}
    return Capture(lib, *found, about)


class Capture:
    """Captures the services of an inference rank.

    Nothing that fails here ends the rank: it is one line of the log.

    Args:
        lib: The session handle of this rank.
        table: What to capture.
        folder: Where to.
        about: What the files say of the job: attributes by name.
    """

    def __init__(
        self,
        lib: core.Session,
        table: CaptureConfig,
        folder: Path,
        about: dict[str, Any],
    ) -> None:
        self._lib, self._table, self._folder = lib, table, folder
        self._services: Sequence[ServiceConfig] = ()
        self._about = about
        self._ring: Ring | None = None
        self._writer: subprocess.Popen[bytes] | None = None
        self._reader = -1
        self._models: list[int] = []

    def start(self, services: Sequence[ServiceConfig]) -> None:
        """Start the writer; once, before the rank publishes its services.

        Args:
            services: In that order.
        """
        self._services = [service.of_version() for service in services]
        self._models = [0] * len(services)
        rank = self._lib.rank
        if not any(map(self._captures, self._services)):
            return
        try:
            self._start(rank)
        except (OSError, ValueError) as error:
            self._reader, self._ring = -1, None
            logger.warning("there is no capture of rank %d: %s", rank, describe(error))

    def _start(self, rank: int) -> None:
        from mpiserve._lib.ring import Ring

        self._folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{self._folder} cannot be written to")
        number = os.memfd_create("mpiserve-capture")
        size = max(self._table.buffer_bytes, 4 * max(map(row_bytes, self._services)) + 2**16)
        try:
            os.posix_fallocate(number, 0, size)  # no later access fails for want of memory
            self._ring = Ring(mmap.mmap(number, size))
            self._writer = self._launch(number)
        finally:
            os.close(number)
        self._reader = os.pidfd_open(self._writer.pid)
        self._tell(self._settings(rank, f"{self._lib.profile()['run'] & 2**64 - 1:016x}"))
        logger.info("requests and answers are captured in %s", self._folder)

    def _launch(self, number: int) -> subprocess.Popen[bytes]:
        # In a session of its own, so that it sees the end of a job that is killed.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "mpiserve.observe.capture_writer", str(number)],
            pass_fds=[number],
            bufsize=0,  # what `wait` does not read is left for `end`
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _settings(self, rank: int, run: str) -> dict[str, Any]:
        keys = ("flush_s", "compression", "compression_level")
        services = [
            {"name": service.name, "attributes": self._attributes(service)}
            for service in self._services
        ]
        return {
            "folder": str(self._folder),
            "run": run,
            "rank": rank,
            "services": services,
            "attributes": {"run": run, "head": rank, "host": socket.gethostname(), **self._about},
            **{key: getattr(self._table, key) for key in keys},
        }

    def _attributes(self, service: ServiceConfig) -> dict[str, Any]:
        return {
            "signature": json.dumps(
                {
                    "inputs": [tensor_of(tensor) for tensor in service.inputs],
                    "outputs": [tensor_of(tensor) for tensor in service.outputs],
                }
            ),
            "backend": service.backend,
            "model": service.model or "",
            "units": json.dumps(units_of(service)),
        }

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._writer and self._writer.stdin
        with suppress(OSError):  # it has died: `look` says so
            self._writer.stdin.write(json.dumps(message).encode() + b"\n")
            self._writer.stdin.flush()

    def _captures(self, service: ServiceConfig) -> bool:
        named = service.name in self._table.services
        return named or not (self._table.services or service.derivative)

    def wait(self) -> None:
        """Wait shortly until the writer takes rows: before, they are in memory only."""
        if self._writer and self._writer.stdout:
            ready, *_ = select.select([self._writer.stdout], [], [], START_S)
            if ready and not self._writer.stdout.readline():
                self._writer.wait(END_S)  # it has ended, and `look` says why

    def begin(self) -> None:
        """Take what simulation ranks record, before there are models, too."""
        for index in range(len(self._services)):
            self._set(index)

    def enter(self, index: int, version: str) -> None:
        """Capture a service whose model answers from now on, of this version."""
        self._models[index] += 1
        if self._ring is not None and self._captures(self._services[index]):
            message = {"service": index, "model": self._models[index], "version": version}
            self._tell(message)
            self._set(index)

    def _set(self, index: int) -> None:
        service, model = self._services[index], self._models[index]
        if self._ring is None or not self._captures(service):
            return
        try:
            self._lib.set_capture(index, self._ring, self._reader, model, self._table)
        except Error as error:
            if model == 0:
                logger.warning("service %s is not captured: %s", service.name, error.text)

    def look(self) -> None:
        """Log that the writer has stopped, if it has; the library has noticed by itself."""
        if self._ring is None or self._writer is None:
            return
        why = self._ring.closed
        if why is None and self._writer.poll() is not None:
            why = f"its writer has ended with status {self._writer.returncode}"
        if why is not None:
            self._forget()
            logger.error(STOPS, why)

    def _forget(self) -> None:
        self._ring = None
        for index in range(len(self._services)):
            self._lib.set_capture(index, None, -1, 0, self._table)

    def end(self) -> None:
        """Let the writer finish, and say what was captured. No answer follows."""
        self.look()
        if self._ring is None or self._writer is None:
            return
        ring, begin = self._ring, time.monotonic()
        self._forget()
        try:
            told, _ = self._writer.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            text = "the writer of the capture needs more than %g s to finish: it goes on alone"
            logger.warning(text, END_S)
            return
        if self._writer.returncode:
            logger.error(STOPS, ring.closed or f"status {self._writer.returncode}")
            return
        dropped = f", and {ring.dropped} dropped" if ring.dropped else ""
        counts = json.loads(told)
        recorded = f", {counts['physics']} of them recorded" if counts["physics"] else ""
        text = "%d rows were captured%s%s (the files took %.1f s at the end)"
        logger.info(text, counts["rows"], recorded, dropped, time.monotonic() - begin)


def tensor_of(tensor: Any) -> dict[str, Any]:
    """Describe a tensor for a file: the shape is that of a row."""
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.row_shape)}


def units_of(service: ServiceConfig) -> dict[str, str]:
    """Return what the values of tensors are counted in, by path, where it is given."""
    sides = {"inputs": service.inputs, "outputs": service.outputs}
    return {f"{side}/{t.name}": t.units for side, given in sides.items() for t in given if t.units}


def row_bytes(service: ServiceConfig) -> int:
    """Return the bytes of a row of a service."""
    return sum(tensor.row_bytes for tensor in (*service.inputs, *service.outputs))


def versions() -> dict[str, str]:
    """Say with which libraries, and from which sources, a job runs."""
    return {
        "mpiserve": version("mpiserve"),
        "mpi4py": version("mpi4py"),
        "python": sys.version.split()[0],
        "git": git_state(),
    }


def git_state() -> str:
    """Return the commit of the working folder, and whether it was changed; "" outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_S, stdin=subprocess.DEVNULL
        )
        return done.stdout.strip() if not done.returncode else ""
    return ""
