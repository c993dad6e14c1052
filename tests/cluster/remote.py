"""The first process of a host, which also does what sshd does; and what the others use for ssh.

    python3 remote.py serve SOCKET        on the host
    python3 remote.py run SOCKET COMMAND  from anywhere: exits with the command's status

A process cannot enter the process namespace of another host, so somebody there has to start what
launchers ask for. The socket is a file; the command gets the asker's files, folder and environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys


def serve(path: str) -> None:
    """Start what is asked for, and reap what others left, for ever."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    waiting: dict[int, socket.socket] = {}
    wakeup, signalled = socket.socketpair()
    signalled.setblocking(False)
    signal.set_wakeup_fd(signalled.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([listener, wakeup], [], [])
        if wakeup in ready:
            wakeup.recv(4096)
            reap(waiting)
        if listener in ready:
            asker, _ = listener.accept()
            waiting[start(asker)] = asker


def start(asker: socket.socket) -> int:
    """Start one command, and return its process id."""
    message, files, _, _ = socket.recv_fds(asker, 1 << 20, 3)
    size = int(message[:8])
    while len(message) < 8 + size:
        message += asker.recv(1 << 20)
    order = json.loads(message[8:])
    child = os.fork()
    if child == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            for target, file in enumerate(files):
                os.dup2(file, target)
            os.closerange(3, 64)
            os.chdir(order["folder"])
            os.execve("/bin/sh", ["sh", "-c", order["command"]], order["environment"])
        finally:
            os._exit(127)
    for file in files:
        os.close(file)
    return child


def reap(waiting: dict[int, socket.socket]) -> None:
    """Tell askers how their commands ended."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not child:
            return
        asker = waiting.pop(child, None)
        if asker:
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):  # it did not wait
                asker.sendall(str(code if code >= 0 else 128 - code).encode())
            asker.close()


def run(path: str, command: str) -> int:
    """Run a command on the host of a socket."""
    asker = socket.socket(socket.AF_UNIX)
    asker.connect(path)
    order = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
    text = json.dumps(order).encode()
    message = b"%08d" % len(text) + text
    sent = socket.send_fds(asker, [message], [0, 1, 2])
    asker.sendall(message[sent:])
    return int(asker.recv(64) or 255)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(run(sys.argv[2], " ".join(sys.argv[3:])))
