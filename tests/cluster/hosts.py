"""Hosts on one machine: network namespaces with names, shared memory and processes of their own.

A host is a process, the first of its namespaces. When it ends the kernel ends all that runs there
and takes the network away; it ends with the process that made it, however that one ends. Nothing
has a name outside, so that several sets of hosts do not meet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

NETWORK = "10.77.0"
SWITCH = "switch"
NEEDED = ("ip", "nsenter", "unshare", "setpriv", "mount")
# What makes a host out of new namespaces: NAME, /etc/hosts, and the first process's command.
SET_UP = """\
set -e
hostname "$1"
mount -t tmpfs -o size=512m tmpfs /dev/shm
mount --bind "$2" /etc/hosts
shift 2
exec "$@"
"""
# What launchers use in place of ssh: [OPTIONS] HOST COMMAND ...
REMOTE_SHELL = """\
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec PYTHON -S -E REMOTE run "FOLDER/$host.ready" "$@"
"""
REMOTE = Path(__file__).with_name("remote.py")


def missing() -> str | None:
    """Say what keeps this machine from having hosts, if anything does."""
    if os.geteuid() != 0:
        return "hosts of network namespaces need root"
    lacking = [name for name in NEEDED if not shutil.which(name)]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install iproute2 util-linux"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--ipc", "--pid", "--mount", "--fork", "ip", "link", "add"]
        + [SWITCH, "type", "bridge"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces or bridges here: {tried.stderr.strip()}" if tried.returncode else None


class Runs:
    """A context manager of what is started whole or not at all, by _start, and ended by close."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        """Start all."""

    def close(self) -> None:
        """End all."""


class Hosts(Runs):
    """Hosts that share a network and this machine's files. A context manager.

    Args:
        names: Of the hosts.
        folder: For sockets and logs.
        ahead: Seconds by which the monotonic clocks of hosts are ahead of this machine's.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, ahead: Mapping[str, int] | None = None
    ) -> None:
        self.names = list(names)
        self.ahead = dict(ahead or {})
        self.folder = folder
        self.remote_shell = folder / "remote-shell"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._first: dict[str, int] = {}  # process ids

    def close(self) -> None:
        """End every host and all that runs there."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()
        self._running.clear()

    def address(self, name: str) -> str:
        """Return a host's address in the network of the hosts."""
        return f"{NETWORK}.{self.names.index(name) + 1}"

    def on(self, name: str, command: Sequence[str | Path], cwd: str | Path = "/") -> list[str]:
        """Return the command that runs another one on a host, in a folder."""
        flags = ["-t", str(self._first[name]), "-n", "-u", "-i", "-p", "-m"]
        return ["nsenter", *flags, "--", "env", "-C", str(cwd), *map(str, command)]

    def processes(self, name: str) -> list[str]:
        """Return the command lines of a host, but for what keeps it up and who looks."""
        listed = _run(self.on(name, ["ps", "ww", "-eo", "pid,args", "--no-headers"])).splitlines()
        lines = [line.strip().split(None, 1) for line in listed]
        return [args for pid, args in lines if pid != "1" and not args.startswith("ps ww")]

    def listed(self, name: str, folder: str) -> list[str]:
        """Return the files under a folder of a host."""
        return _run(
            self.on(name, ["find", folder, "!", "-type", "d", "-printf", "%f\\n"])
        ).splitlines()

    def cut(self, name: str) -> None:
        """Take a host off the network, as a broken cable does: nobody is told."""
        self._in_switch("ip", "link", "set", name, "nomaster")

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        table = self.folder / "etc-hosts"
        lines = [f"{self.address(name)} {name}" for name in self.names]
        table.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        text = REMOTE_SHELL.replace("PYTHON", sys.executable).replace("REMOTE", str(REMOTE))
        self.remote_shell.write_text(text.replace("FOLDER", str(self.folder)))
        self.remote_shell.chmod(0o755)
        # exec: a sleep that is the shell's child would outlive it.
        wait = f"touch {self._ready(SWITCH)}; exec sleep infinity"
        self._spawn(SWITCH, ["unshare", "--net", "sh", "-c", wait])
        for name in self.names:
            own = ["--net", "--uts", "--ipc", "--pid", "--mount"]
            if name in self.ahead:
                own += ["--time", "--monotonic", str(self.ahead[name])]
            flags = ["--fork", "--mount-proc", "--kill-child"]
            set_up = ["sh", "-c", SET_UP, "sh", name, str(table)]
            first = [sys.executable, "-S", "-E", str(REMOTE), "serve", self._ready(name)]
            self._spawn(name, ["unshare", *own, *flags, *set_up, *first])
        for name in self.names:
            self._first[name] = self._first_process(name)
        self._connect()

    def _spawn(self, name: str, command: list[str]) -> None:
        Path(self._ready(name)).unlink(missing_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _ready(self, name: str) -> str:
        return str(self.folder / f"{name}.ready")

    def _await(self, name: str) -> None:
        """Wait until a namespace is there."""
        deadline = time.monotonic() + 10
        while not Path(self._ready(name)).exists():
            if self._running[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / f"{name}.log").read_text() or f"no {name}")
            time.sleep(0.01)

    def _first_process(self, name: str) -> int:
        """Return the id of a host's first process, as we see it."""
        self._await(name)
        process = self._running[name].pid
        children = Path(f"/proc/{process}/task/{process}/children").read_text()
        return int(children.split()[0])

    def _connect(self) -> None:
        self._await(SWITCH)
        self._in_switch("ip", "link", "add", SWITCH, "type", "bridge")
        self._in_switch("ip", "link", "set", SWITCH, "up")
        for name in self.names:
            peer = ["peer", "name", "eth0", "netns", str(self._first[name])]
            self._in_switch("ip", "link", "add", name, "type", "veth", *peer)
            self._in_switch("ip", "link", "set", name, "master", SWITCH, "up")
            address = ["addr", "add", f"{self.address(name)}/24", "dev", "eth0"]
            for args in (address, ["link", "set", "eth0", "up"], ["link", "set", "lo", "up"]):
                _run(self.on(name, ["ip", *args]))

    def _in_switch(self, *command: str) -> None:
        _run(["nsenter", "-t", str(self._running["switch"].pid), "-n", "--", *command])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
