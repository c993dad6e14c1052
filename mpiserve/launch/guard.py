"""The process of a task of RADICAL-Pilot: it starts mpiexec, and ends all that is left of a job.

    python -m mpiserve.launch.guard [--ready-within SECONDS] -- MPIEXEC ARGUMENTS

RADICAL-Pilot asks a task to end, kills its process group 0.1 s later, and takes it for ended: what
is in other groups, as the ranks of a job are, would stay. And it dies as others do. So there are
two processes. The front is that which RADICAL-Pilot knows. The guard, in a session of its own,
waits for the end of the job, of the front and of RADICAL-Pilot, and ends what is left. Whatever
loses its parent becomes a child of the guard, or else of the front: nothing gets away while one of
them lives. If both are killed, the kernel ends mpiexec, and the ranks notice that.

With --ready-within it passes the output of the job on, looks for the line with the endpoint file,
and prints one that says why there is none, so that those who wait for the service need not. Bytes
that are not ASCII, which RADICAL-Pilot cannot read before that line, become question marks.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from mpiserve._lib import handover
from mpiserve.mpi.launcher import ancestors

ENDPOINT = "mpiserve endpoint file: "  # what mpiserve/gateway/rank.py prints, before the path
FAILED = "failed: "  # follows in place of the path
READY = "--ready-within"
GRACE = 5.0  # seconds that a job has to end, when it is asked to
KILLED = 10.0  # seconds in which killed processes must be gone
LEFT = 60.0  # seconds that those have which a job leaves that ended well, as writers of a capture
TOLD = 2.0  # seconds that others have to read the last words of this process
LOOK = 0.02  # seconds between two looks at processes that should end
REAP = 5.0  # seconds between two looks for orphans that have ended
LINE = 1 << 13  # bytes, more than the line with the endpoint has
READABLE = bytes(range(128)) + 128 * b"?"
OK, FAILURE, USAGE = 0, 1, 2  # exit statuses
ASKED = 128 + signal.SIGTERM  # that of a task that was ended
HELP = f"usage: python -m mpiserve.launch.guard [{READY} SECONDS] -- MPIEXEC ARGUMENTS"


def main(arguments: Sequence[str]) -> int:
    """Run a job as a task; return its exit status. This process is the front."""
    options, command = _split(list(arguments))
    if not command or (options and (len(options), options[0]) != (2, READY)):
        print(HELP, file=sys.stderr)
        return USAGE
    ready_s = float(options[1]) if options else 0.0
    try:
        files = _watched()
    except OSError as error:  # one of them has ended, or Linux before 5.3
        why = f"the processes above this task: {error}"
        _warn(why)
        return _without_gateway(why, ready_s, FAILURE)
    handover.adopt_orphans()
    guard = os.fork()
    if guard == 0:
        os._exit(_guard(command, files, ready_s))
    code = _wait_for(guard)
    end_children()
    why = "the process that guards the job was killed" if code < 0 else ""
    return _without_gateway(why, ready_s, _status(code))


def _watched() -> list[int]:
    """Open the processes whose end is that of the task."""
    pids = above()
    files = [os.pidfd_open(pid) for pid in (os.getpid(), *pids)]
    orphan = pids[-1:] == [1] and os.getsid(1) != os.getsid(0)
    if orphan or above() != pids:
        raise ProcessLookupError("one of them has ended")
    return files


def _wait_for(guard: int) -> int:
    """Wait for the guard, and pass signals on while it lives; return its exit code."""
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        signal.signal(number, lambda *_: os.kill(guard, signal.SIGTERM))
    os.waitid(os.P_PID, guard, os.WEXITED | os.WNOWAIT)
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    return os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1])


def _status(code: int) -> int:
    """Return what a shell says of a process, for what Python says."""
    return code if code >= 0 else 128 - code


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def above() -> list[int]:
    """Return the processes whose end is that of the task: up to that which began its session."""
    mine, found = os.getsid(0), []
    for pid, _ in ancestors(os.getpid()):
        found.append(pid)
        if os.getsid(pid) != mine:
            break
    return found


def _warn(text: str) -> None:
    """Say something, if anybody reads it."""
    _write(2, f"mpiserve: {text}\n".encode())


def _without_gateway(why: str, ready_s: float, status: int) -> int:
    """Tell who waits for the gateway why there will be none, if so; return the status.

    RADICAL-Pilot reads byte by byte, and no more when this process has ended.
    """
    if why and ready_s and _write(1, f"{ENDPOINT}{FAILED}{why}\n".encode()):
        time.sleep(TOLD)
    return status


def _write(file: int, data: bytes) -> bool:
    """Write, and return whether it was written: nobody may read, and a pipe may be full."""
    done: list[int] = []

    def write() -> None:
        with suppress(OSError):
            done.append(os.write(file, data))

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(TOLD)
    return bool(done)


def _guard(command: list[str], files: list[int], ready_s: float) -> int:
    os.setsid()
    handover.adopt_orphans()
    try:
        status, missing = Job(command, files, ready_s).run()
    except OSError as error:
        _warn(str(error))
        status, missing = FAILURE, str(error)
    finally:
        end_children()
    return _without_gateway(missing, ready_s, status)


class Job:
    """A job, until it has ended or is to end.

    Args:
        command: Starts it.
        files: Of the processes whose end is that of the job, from os.pidfd_open.
        ready_s: Seconds in which its gateway must be ready; 0: nobody waits for one.

    Raises:
        OSError: If it cannot be started.
    """

    def __init__(self, command: list[str], files: list[int], ready_s: float) -> None:
        self._above, self._ready_s = set(files), ready_s
        self._until = time.monotonic() + ready_s if ready_s else math.inf
        self._asked, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        self._child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE if ready_s else None,
            preexec_fn=lambda: handover.die_with_parent(signal.SIGTERM),
        )
        self._ended = os.pidfd_open(self._child.pid)
        # A thread of its own: whoever reads slowly, or not at all, does not keep the job alive.
        self._output = threading.Thread(target=self._pass_on, daemon=True)
        if ready_s:
            self._output.start()

    @property
    def _waits(self) -> bool:
        """Whether somebody waits for the gateway."""
        return self._until < math.inf

    def run(self) -> tuple[int, str]:
        """Wait for the end of the job, or for a reason to end it.

        Returns:
            The exit status; and why there is no gateway, or "" if there was one.
        """
        while not (found := self._look(REAP, self._ended)):
            if time.monotonic() >= self._until:
                break
        if found == {self._ended}:
            return self._after_end()
        why = self._reason(found)
        missing = why if self._waits else ""
        self._end()
        _warn(f"{why}: the job was ended")
        return ASKED, missing

    def _look(self, seconds: float, *ends: int) -> set[int]:
        """Wait for what may end the job, so long at most; take note of orphans that have ended.

        Returns:
            The files at which something happened.
        """
        self._reap()
        poll = select.poll()
        for file in (*self._above, self._asked, *ends):
            poll.register(file, select.POLLIN)
        left = max(0.0, min(seconds, self._until - time.monotonic()))
        return {file for file, _ in poll.poll(math.ceil(1000 * left))}

    def _reason(self, found: set[int]) -> str:
        if not found:
            return f"the gateway was not ready within {self._ready_s:g} s"
        return "the task was asked to end" if self._asked in found else "the task has ended"

    def _after_end(self) -> tuple[int, str]:
        """Give what a job leaves that ended well some time; return what run does."""
        status = _status(self._child.wait())
        self._drain()
        if self._waits:
            return status, f"the job ended with status {status} before its gateway was ready"
        until = time.monotonic() + LEFT
        while status == OK and _children() and time.monotonic() < until:
            if self._look(LOOK):
                break
        return status, ""

    def _end(self) -> None:
        """Ask the job to end, wait for it and its ranks, and kill what is left."""
        self._child.terminate()
        until = time.monotonic() + GRACE
        while (self._child.poll() is None or _children()) and time.monotonic() < until:
            self._reap()
            time.sleep(LOOK)
        self._child.kill()
        end_children()
        self._drain()

    def _reap(self) -> None:
        """Take note of children that have ended: orphans, which are nobody else's."""
        with suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if self._child.returncode is None and found.si_pid == self._child.pid:
                    self._child.poll()
                else:
                    os.waitpid(found.si_pid, 0)

    def _pass_on(self) -> None:
        """Pass on what the job writes, as long as anybody reads it, and look for the endpoint."""
        assert self._child.stdout
        source, line = self._child.stdout.fileno(), b""
        while data := os.read(source, 1 << 16):
            if self._waits:
                data = data.translate(READABLE)
                line = (line + data)[-LINE - len(data) :]
                *lines, line = line.split(b"\n")
                if any(ENDPOINT.encode() in each for each in lines):
                    self._until = math.inf
            with suppress(OSError):
                while data:
                    data = data[os.write(1, data) :]

    def _drain(self) -> None:
        """Wait until all that the job has written is passed on, if anybody reads it."""
        if self._output.ident:
            self._output.join(TOLD)


def end_children() -> None:
    """Kill all children, and those that become children when these end."""
    until = time.monotonic() + KILLED
    while (pids := _children()) and time.monotonic() < until:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:  # a kernel without this file
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
