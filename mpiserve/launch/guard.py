"""The process of a task of RADICAL-Pilot: it starts mpiexec, and ends all that is left of a job.

    python -m mpiserve.launch.guard [--ready-within SECONDS] -- MPIEXEC ARGUMENTS

RADICAL-Pilot asks a task to end, kills its process group 0.1 s later, and takes it for ended: what
is in other groups, as the ranks of a job are, would stay. And it dies as others do. So there are
two processes. The front is that which RADICAL-Pilot knows. The guard, in a session of its own,
waits for the end of the job, of the front and of RADICAL-Pilot, and ends what is left. Whatever
loses its parent becomes a child of the guard, or else of the front: nothing gets away while one of
them lives. If both are killed, the kernel ends mpiexec, and the ranks notice that.

With --ready-within it passes the output of the job on, looks for the line with the endpoint file,
and prints one that says why there is none, so that those who wait for the service need not.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
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
        files = [os.pidfd_open(pid) for pid in (os.getpid(), *above())]
    except OSError as error:  # one of them has ended, or Linux before 5.3
        return _fail(f"the processes above this task: {error}", ready_s)
    handover.adopt_orphans()
    guard = os.fork()
    if guard == 0:
        os._exit(_guard(command, files, ready_s))
    return _wait_for(guard, ready_s)


def _wait_for(guard: int, ready_s: float) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(guard, signal.SIGTERM))
    code = os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1])
    end_children()
    return code if code >= 0 else _fail(f"signal {-code} has ended the guard", ready_s)


def _fail(why: str, ready_s: float) -> int:
    """Say that there is no job, also to those who wait for its gateway; return the exit status."""
    print(f"mpiserve: {why}", file=sys.stderr, flush=True)
    if ready_s:
        print(f"{ENDPOINT}{FAILED}{why}", flush=True)
    return FAILURE


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


def _guard(command: list[str], files: list[int], ready_s: float) -> int:
    os.setsid()
    handover.adopt_orphans()
    try:
        return Job(command, files, ready_s).run()
    except OSError as error:
        return _fail(str(error), ready_s)
    finally:
        end_children()


class Job:
    """A job, until it has ended or is to end.

    Args:
        command: Starts it.
        files: Of the processes whose end is that of the job, from os.pidfd_open.
        ready_s: Seconds in which its gateway must be ready; 0: nobody waits for one.
    """

    def __init__(self, command: list[str], files: list[int], ready_s: float) -> None:
        self._above, self._ready_s, self._line = set(files), ready_s, b""
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
        self._output = self._child.stdout.fileno() if self._child.stdout else None

    @property
    def _waits(self) -> bool:
        """Whether somebody waits for the gateway."""
        return self._until < math.inf

    def run(self) -> int:
        """Wait for the end of the job, or for a reason to end it; return the exit status."""
        while not (found := self._wait()):
            pass
        if found == {self._ended}:
            status = _status(self._child.wait())
            self._give_up(f"the job ended with status {status} before its gateway was ready")
            return status
        why = self._reason(found)
        print(f"mpiserve: {why}: ending the job", file=sys.stderr, flush=True)
        self._give_up(why)
        self._child.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(GRACE)
        return ASKED

    def _wait(self) -> set[int | None]:
        """Wait for what may end the job, and pass its output on.

        Returns:
            The files at which something happened, empty if the job goes on; {None}: the gateway is
            not ready in time.
        """
        poll = select.poll()
        for file in (*self._above, self._asked, self._ended, self._output):
            if file is not None:
                poll.register(file, select.POLLIN)
        left = max(0.0, self._until - time.monotonic())
        found: set[int | None] = {
            file for file, _ in poll.poll(1000 * left if self._waits else None)
        }
        if self._output in found:
            self._pass_on()
            return set()
        return found or {None}

    def _reason(self, found: set[int | None]) -> str:
        if found == {None}:
            return f"the gateway was not ready within {self._ready_s:g} s"
        return "the task was asked to end" if self._asked in found else "the task has ended"

    def _pass_on(self) -> None:
        """Pass on what the job has written, and look for the endpoint."""
        assert self._output is not None
        data = os.read(self._output, 1 << 16)
        if not data:
            self._output = None
        os.write(1, data)
        if self._waits:
            *lines, self._line = (self._line + data).split(b"\n")
            if any(ENDPOINT.encode() in line for line in lines):
                self._until = math.inf

    def _give_up(self, why: str) -> None:
        """Tell who waits for the gateway that there will be none."""
        if self._waits:
            print(f"{ENDPOINT}{FAILED}{why}", flush=True)


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
