"""The fork server: a process without MPI that imports libraries once, and forks children.

A rank starts it as a program of its own. It ends when the rank does, and ends all children first.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from mpiserve._lib import handover
from mpiserve.serving.isolation import huge_pages

IMPORT, LATER, FORK, END = "import", "later", "fork", "end"  # requests
MESSAGE = 1 << 16  # bytes of the longest request
FILES = 64  # the most descriptors of a request
REAP = 1.0  # seconds between two looks for descendants whose parents have ended
KILLED = 5.0  # seconds that the kernel may take to end a process
DEEPSPEED = "deepspeed"
# What launchers send to all processes of a rank and is for the rank: hydra of MPICH SIGUSR1 when
# another rank has died, Slurm what --signal says. Whoever starts a process blocks them.
FOR_RANKS = (signal.SIGUSR1, signal.SIGUSR2)


def main(number: int) -> None:
    """Serve the rank at the other end of a socket, until it closes the socket or ends."""
    signal.signal(signal.SIGTERM, _stop)
    ignore_signals()
    handover.adopt_orphans()  # no signal at the rank's death: a thread that ends would cause it
    with socket.socket(fileno=number) as link:
        server = Server(link)
        try:
            server.run()
        finally:
            server.end_all()


def ignore_signals() -> None:
    """Ignore the signals that are for the rank, which have been blocked until now."""
    for number in FOR_RANKS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_RANKS)


class Stopped(SystemExit):
    """SIGTERM has come. What a library raises that is imported is another one's."""


def _stop(_number: int, _frame: object) -> NoReturn:
    raise Stopped


class Server:
    """Imports, forks and ends, as the rank asks.

    Args:
        link: The socket to the rank.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._children: set[int] = set()
        self._later: list[Callable[[], None]] = []  # while the rank asks for nothing

    def run(self) -> None:
        """Answer requests until the rank is gone."""
        while True:
            if readable(self._link, 0.0 if self._later else REAP):
                data, files, _, _ = socket.recv_fds(self._link, MESSAGE, FILES)
                if not data:
                    return
                what, argument = pickle.loads(data)
                self._do(what, argument, files)
            elif self._later:
                self._later.pop(0)()
            self._reap_orphans()

    def _do(self, what: str, argument: Any, files: list[int]) -> None:
        if what == IMPORT:
            names, variables = argument
            os.environ.update(variables)
            self._import(names)
        elif what == LATER:
            self._later += [*(partial(load_library, name) for name in argument), self._share]
        elif what == FORK:
            self._fork(argument, files)
        elif what == END:
            self._link.send(pickle.dumps(self._end(argument)))

    def _import(self, names: list[str]) -> None:
        for name in names:
            load_library(name)
        _freeze()

    def _share(self) -> None:
        """Prepare what was imported for children, until the rank asks for something."""
        _freeze()
        for _ in huge_pages.collapse():
            if readable(self._link, 0.0):
                self._later.append(self._share)
                return

    def _fork(self, name: str, files: list[int]) -> None:
        try:
            pid = self._forked(name, files)
        except OSError as error:  # of processes or memory: children that are there live on
            self._link.send(pickle.dumps(str(error)))
            return
        finally:
            for file in files:
                os.close(file)
        pidfd = os.pidfd_open(pid)
        socket.send_fds(self._link, [pickle.dumps(pid)], [pidfd])
        os.close(pidfd)

    def _forked(self, name: str, files: list[int]) -> int:
        flush()
        server, pid = os.getpid(), os.fork()
        if not pid:
            _begin(self._link, server, name, files)
        self._children.add(pid)
        return pid

    def _end(self, pid: int) -> int | None:
        """Kill a child and its group; return its status, or None if it does not end."""
        if pid not in self._children:
            return None
        _kill(pid)
        status = _wait(pid)
        self._children.discard(pid)
        if not self._children:
            self._kill_orphans()
        return status

    def end_all(self) -> None:
        """Kill all children, and what they have started."""
        for pid in self._children:
            _kill(pid)
        for pid in self._children:
            _wait(pid)
        self._children.clear()
        self._kill_orphans()

    def _orphans(self) -> list[int]:
        """Return descendants that this process has adopted."""
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                every = {int(pid) for pid in file.read().split()}
        except OSError:  # a kernel without this file
            return []
        return sorted(every - self._children)

    def _reap_orphans(self) -> None:
        for pid in self._orphans():
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _kill_orphans(self) -> None:
        """End what has left the group of its child; it would hold the job open.

        What they have started becomes an orphan when they end, and may start more meanwhile.
        """
        end = time.monotonic() + KILLED
        while (orphans := self._orphans()) and time.monotonic() < end:
            for pid in orphans:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            for pid in orphans:
                _wait(pid)


def _begin(link: socket.socket, server: int, name: str, files: list[int]) -> NoReturn:
    """Live as a child, apart from the rank's terminal and process group."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    handover.die_with_parent(signal.SIGKILL)
    if os.getppid() != server:  # it died before
        os._exit(1)
    link.close()
    gc.unfreeze()
    from mpiserve.serving.isolation import child

    child.main(name, files)


def _freeze() -> None:
    """Keep the collector from writing to pages that children share."""
    gc.collect()
    gc.freeze()


def load_library(name: str) -> None:
    """Import a library for all children. One that cannot be imported fails in the child."""
    try:
        if name == DEEPSPEED:
            from mpiserve.backends.torch.deepspeed_backend import import_deepspeed

            import_deepspeed("cpu")
        else:
            import_module(name)
    except Stopped:
        raise
    except BaseException as error:
        print(f"mpiserve: cannot import {name} ahead: {error!r}", file=sys.stderr)


def readable(file: Any, seconds: float) -> bool:
    """Wait until a descriptor can be read; of any number, which `select` cannot."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def flush() -> None:
    """Write what Python holds back: each child would write it again."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def _kill(pid: int) -> None:
    for end in (os.killpg, os.kill):  # it may not have made its group yet
        with suppress(ProcessLookupError, PermissionError):
            end(pid, signal.SIGKILL)


def _wait(pid: int) -> int | None:
    """Wait for the end of a killed process; one that waits for a device may take long."""
    end = time.monotonic() + KILLED
    while time.monotonic() < end:
        with suppress(ChildProcessError):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return status
        time.sleep(0.0005)
    return None
