"""Find what jobs that have died left on this node, and remove it; only what this user owns."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from mpiserve.mpi.launcher import launchers

# Of Open MPI 5 and 4, and of MPICH.
SEGMENTS = re.compile(r"(sm_segment|vader_segment|smcoll_|xhc_|osc_|mpich_shm_|mpich_shar_tmp).*")
# The session folders of Open MPI 5, in two versions, and 4, with the number of the launcher.
SESSION = re.compile(r"ompi\.(\d+)|prte\..+\.(\d+)\.\d+|pid\.(\d+)")
RANK = re.compile(rb"\0-m\0mpiserve\0(run|serve)\0")
YOUNG = 60.0  # seconds for which a file may belong to a job that is just starting
MERCY = 3.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Leftover:
    """A process, a file or a folder of a dead job."""

    what: str
    path: Path | None = None
    pid: int = 0

    def remove(self) -> None:
        """Remove it; another user's, or one that is gone, stays as it is."""
        with suppress(OSError):
            if self.pid:
                end(self.pid)
            elif self.path and self.path.is_dir():
                shutil.rmtree(self.path)
            elif self.path:
                self.path.unlink()


def end(pid: int) -> None:
    """End a process by SIGTERM, or by SIGKILL if that does not do."""
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + MERCY
    while time.monotonic() < until:
        time.sleep(0.05)
        os.kill(pid, 0)  # raises when it is gone
    os.kill(pid, signal.SIGKILL)


def find(
    proc: Path = Path("/proc"), shm: Path = Path("/dev/shm"), tmp: Path | None = None
) -> list[Leftover]:
    """Find the leftovers of this node: ranks without a launcher, files that no process uses."""
    temporary = Path(os.environ.get("TMPDIR", "/tmp")) if tmp is None else tmp
    return [*processes(proc), *segments(proc, shm), *sessions(proc, temporary)]


def owned(paths: Iterator[Path]) -> Iterator[Path]:
    """Yield the paths that this user owns."""
    for path in paths:
        with suppress(OSError):
            if path.lstat().st_uid == os.getuid():
                yield path


def running(proc: Path) -> list[int]:
    """List the processes of this user."""
    return [int(path.name) for path in owned(proc.glob("[0-9]*"))]


def processes(proc: Path) -> Iterator[Leftover]:
    """Find ranks of mpiserve whose launcher has ended."""
    for pid in running(proc):
        try:
            command = (proc / str(pid) / "cmdline").read_bytes()
            environment = (proc / str(pid) / "environ").read_bytes()
        except OSError:
            continue
        launched = re.search(rb"(^|\0)(OMPI_COMM_WORLD_SIZE|PMI_SIZE|SLURM_STEP_ID)=", environment)
        if launched and RANK.search(command) and not launchers(pid, proc):
            words = command.replace(b"\0", b" ").decode(errors="replace").strip()
            yield Leftover(f"process {pid}, whose launcher has ended: {words[:100]}", pid=pid)


def segments(proc: Path, shm: Path) -> Iterator[Leftover]:
    """Find files of shared memory that MPI made, and no process has mapped."""
    used = mapped(proc)
    for path in owned(shm.glob("*")):
        if not SEGMENTS.fullmatch(path.name) or str(path) in used:
            continue
        found = path.stat()
        if time.time() - found.st_mtime > YOUNG:
            yield Leftover(f"{path}, {found.st_blocks / 2048:.1f} MiB that nothing uses", path)


def mapped(proc: Path) -> set[str]:
    """List the files that processes have mapped, as far as this user may see."""
    found = set()
    for pid in running(proc):
        with suppress(OSError):
            for line in (proc / str(pid) / "maps").read_text(errors="replace").splitlines():
                if "/dev/shm/" in line:
                    found.add(line[line.index("/dev/shm/") :])
    return found


def sessions(proc: Path, tmp: Path) -> Iterator[Leftover]:
    """Find folders of sessions of Open MPI whose launcher has ended."""
    alive = running(proc)
    for path in owned(chain(tmp.glob("*"), tmp.glob("ompi.*/pid.*"))):
        found = SESSION.fullmatch(path.name)
        if found and int(found[found.lastindex or 1]) not in alive and path.is_dir():
            yield Leftover(f"{path}, a session whose launcher has ended", path)
