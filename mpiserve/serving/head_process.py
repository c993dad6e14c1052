"""The inference rank of a session of one process: another process, started and ended from here."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from types import TracebackType

from mpiserve.config import Config
from mpiserve.errors import Code, PeerError
from mpiserve.serving.isolation.server_link import ending, without_mpi

PROGRAM = "mpiserve.launch.local"
BYTES = 131072  # MPISERVE_PAIR_BYTES
LEAVE = 10.0  # seconds that the process has to end when the session is closed
SEEN = 1.0  # seconds until the status of a process that has ended can be read


class HeadProcess:
    """The process, and the file by which the two processes open their session.

    A context manager: an exception ends the process, unless it is `kept`.

    Attributes:
        pair: The file and the process, as descriptors.
    """

    def __init__(self, process: subprocess.Popen[bytes], file: int) -> None:
        self._process, self._kept = process, False
        self.pair = (file, os.pidfd_open(process.pid))
        self._open = True

    @classmethod
    def start(cls, config: Config) -> HeadProcess:
        """Start the process. It has this one's `sys.path`, and ends when this one does."""
        table = pickle.dumps(config)
        file = os.memfd_create("mpiserve-pair")
        try:
            os.ftruncate(file, BYTES)
            head = cls(cls._started(file), file)
        except BaseException:
            os.close(file)
            raise
        stdin = head._process.stdin
        assert stdin
        with suppress(BrokenPipeError), stdin:
            stdin.write(table)
        return head

    @staticmethod
    def _started(file: int) -> subprocess.Popen[bytes]:
        code = f"import sys; sys.path[:] = {sys.path!r}; from {PROGRAM} import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, str(file), str(os.getpid())],
            stdin=subprocess.PIPE,
            pass_fds=[file],
            env=without_mpi(os.environ),
            start_new_session=True,  # Ctrl-C is for this process, which then closes the session
        )

    def kept(self) -> HeadProcess:
        """Let the process live on when the context ends: until `end`."""
        self._kept = True
        return self

    def __enter__(self) -> HeadProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.pair[0])
        if error is None and self._kept:
            return
        status = self._status() if isinstance(error, PeerError) else None
        self.end(0.0)
        if isinstance(error, PeerError):
            how = ending(status, "before its models were ready")
            text = f"the inference process of this session {how}; what it has written says why"
            raise PeerError(Code.EPEER, text) from None

    def end(self, seconds: float = LEAVE) -> None:
        """Wait for the end of the process, and kill it if it does not come in time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._open:  # the first call
            self._open = False
            os.close(self.pair[1])

    def _status(self) -> int | None:
        """Return the status of a process that has ended, as of os.waitpid."""
        try:
            code = self._process.wait(SEEN)
        except subprocess.TimeoutExpired:
            return None
        return -code if code < 0 else code << 8
