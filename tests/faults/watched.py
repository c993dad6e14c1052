"""Jobs that are watched: what they say, when they end, and what they leave behind.

Each has a /dev/shm and a folder for temporary files of its own, so that what it leaves is its own.
Its processes, also those that MPI does not know, carry MARK in their environment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import mpijob

MARK = "MPISERVE_FAULT_JOB"
SHM = "/dev/shm"
RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
HOLDER = 'mount -t tmpfs -o "size=$1" tmpfs /dev/shm && echo ready && exec cat'
PLACES = (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"])


class Process(NamedTuple):
    """One process of a job; `rank` is -1 for launchers and for what ranks have started."""

    pid: int
    rank: int
    command: str


class Room:
    """A /dev/shm that only the processes of one job see, while the process `pid` lives."""

    temporary: str | None = None  # where its processes keep files, if it is a place of its own

    def __init__(self, folder: Path, size: str) -> None:
        for place in PLACES:
            self.holder = subprocess.Popen(
                [*place, "sh", "-c", HOLDER, "sh", size],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                start_new_session=True,  # and ends when this process does: its stdin ends
            )
            assert self.holder.stdout
            if self.holder.stdout.readline() == b"ready\n":
                self.flags = ["--user", "--preserve-credentials"] if place == PLACES[1] else []
                self.shm = Path(f"/proc/{self.holder.pid}/root{SHM}")
                return
            self.close()
        raise RuntimeError("no mount namespace here: it needs root or user namespaces")

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the command that runs another one there; it keeps its process id."""
        return ["nsenter", f"--target={self.holder.pid}", "--mount", "--wd", *self.flags, *words]

    def files(self) -> list[str]:
        return sorted(path.name for path in self.shm.iterdir())

    def fill(self, leave: int) -> None:
        """Fill it but for so many bytes."""
        room = os.statvfs(self.shm)
        with (self.shm / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave)

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()
        for stream in (self.holder.stdin, self.holder.stdout):
            if stream:
                stream.close()


class Watched:
    """A job that runs, or has ended."""

    def __init__(self, folder: Path, room: Room, temporary: Path) -> None:
        self.folder = folder
        self.room = room
        self.temporary = temporary
        self.mark = uuid.uuid4().hex
        self.begin = time.monotonic()
        self.seconds = 0.0
        self.status: int | None = None  # None: it was killed, since its time was over
        self.left: list[Process] = []
        self.shm: list[str] = []  # files that remain there,
        self.session: list[str] = []  # and in the folder for temporary files

    def start(self, command: list[str], env: dict[str, str], stdout: str, stderr: str) -> None:
        env = env | {MARK: self.mark, "TMPDIR": self.room.temporary or str(self.temporary)}
        with open(stdout, "ab") as out, open(stderr, "ab") as err:
            self.launcher = subprocess.Popen(
                self.room.command(command),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.folder,
                start_new_session=True,
            )

    def processes(self) -> list[Process]:
        """The processes of this job, wherever they are."""
        return list(marked(self.mark))

    def rank(self, number: int) -> int:
        """Return the process of a rank: the oldest Python of those that carry its number."""
        mine = [p for p in self.processes() if p.rank == number and "-m mpiserve" in p.command]
        mine = [p for p in mine if "python" in p.command.split()[0]]
        return min(mine, key=lambda p: started(p.pid)).pid

    def writer(self) -> int:
        """Return the process that writes the capture of a rank."""
        return next(p.pid for p in self.processes() if "capture_writer" in p.command)

    def events(self) -> dict[str, list[dict[str, Any]]]:
        """Return what ranks and models have written down, by rank; "model" for the models."""
        found = {}
        for path in sorted(self.folder.glob("events.*")):
            lines = path.read_text().splitlines(keepends=True)
            # A killed rank may leave a torn line.
            found[path.suffix[1:]] = [json.loads(line) for line in lines if line.endswith("\n")]
        return found

    def until(self, there: Callable[[], Any], seconds: float) -> bool:
        """Wait for something while the job lives; tell whether it came."""
        end = time.monotonic() + seconds
        while not there():
            if time.monotonic() > end or self.launcher.poll() is not None:
                return bool(there())
            time.sleep(0.02)
        return True

    def asked(self, step: int) -> bool:
        """Tell whether a rank has come to this step."""
        ranks = self.events().values()
        return any(event.get("step", -1) >= step for events in ranks for event in events)

    def wait(self, seconds: float) -> None:
        """Wait for the launcher."""
        with suppress(subprocess.TimeoutExpired):
            self.status = self.launcher.wait(seconds)
        self.seconds = time.monotonic() - self.begin

    def settle(self, seconds: float) -> None:
        """Give processes this time to end, then list and end those that remain, and the files."""
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end and self.status is not None:
            time.sleep(0.1)
        self.left = left
        self.shm = self.room.files()
        self.session = sorted(str(p.relative_to(self.temporary)) for p in files_in(self.temporary))
        self.end()

    def end(self) -> None:
        """End every process of this job that is still there."""
        for _ in range(50):
            left = self.processes()
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            if not left and self.launcher.poll() is not None:
                return
            time.sleep(0.1)

    def text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""


def marked(mark: str) -> Iterator[Process]:
    """Find the processes whose environment carries a mark; those that have ended have none."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            entries = (folder / "environ").read_bytes().split(b"\0")
            if wanted in entries:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield Process(int(folder.name), rank_in(entries), command.strip())
        except (OSError, UnicodeDecodeError):
            continue


def rank_in(entries: list[bytes]) -> int:
    """Return the rank that an environment names, or -1."""
    pairs = dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries)
    return next((int(pairs[name]) for name in RANKS if pairs.get(name, "").isdigit()), -1)


def started(pid: int) -> int:
    """Return when a process was started, in ticks of the kernel; late if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 1 << 62


def files_in(folder: Path) -> Iterator[Path]:
    """The files under a folder: those of MPI's sessions, sockets among them."""
    return (path for path in folder.rglob("*") if not path.is_dir())


@contextmanager
def job(
    folder: Path,
    words: Sequence[Any],
    *,
    env: dict[str, str],
    shm: str = "1g",
    stdout: str | None = None,
    stderr: str | None = None,
    place: Room | None = None,
) -> Iterator[Watched]:
    """Start mpiexec with these arguments in a folder; end what is left of it at the end."""
    settings = mpijob.settings() | env
    # Sockets lie there, whose paths must be short.
    temporary = Path(tempfile.mkdtemp(prefix="mpiserve-"))
    room = place or Room(folder, shm)
    watched = Watched(folder, room, temporary)
    command = [settings["MPIEXEC"], *map(str, words)]
    out, err = stdout or str(folder / "stdout"), stderr or str(folder / "stderr")
    try:
        watched.start(command, settings, out, err)
        yield watched
    finally:
        if hasattr(watched, "launcher"):
            watched.end()
            watched.launcher.wait()
        room.close()
        shutil.rmtree(temporary, ignore_errors=True)
        print("$", *command, f"\n[exit {watched.status}]")
        print(watched.text("stdout"), watched.text("stderr"), sep="\n--- stderr\n", flush=True)
