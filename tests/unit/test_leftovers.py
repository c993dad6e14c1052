"""What dead jobs left is found and removed; what lives, and what is not ours, stays."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpiserve.mpi import launcher
from mpiserve.tools import leftovers

PROC = Path("/proc")
OLD = time.time() - 3600

# Looks like a rank: python PROGRAM -m mpiserve serve x
SLEEPS = "import time\nprint('up', flush=True)\ntime.sleep(60)\n"
ORPHAN = """\
import subprocess, sys
rank = subprocess.Popen([sys.executable, "sleeps.py", "-m", "mpiserve", "serve", "x"],
                        start_new_session=True)
print(rank.pid, flush=True)
"""


@pytest.fixture
def rank(tmp_path):
    """A process like a rank whose parent has ended."""
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    env = os.environ | {"PMI_SIZE": "2"}
    command = [sys.executable, "-c", ORPHAN]
    parent = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline().replace("up", ""))
    parent.wait(timeout=20)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def ours(pid):
    return [found for found in leftovers.processes(PROC) if found.pid == pid]


def is_gone(pid):
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_rank_without_a_launcher_is_found_and_ended(rank, monkeypatch):
    monkeypatch.setattr(leftovers, "MERCY", 0.2)
    (found,) = ours(rank)
    assert "sleeps.py -m mpiserve serve x" in found.what
    found.remove()
    assert is_gone(rank)


def test_a_rank_whose_launcher_lives_is_none(rank, monkeypatch):
    names = {name for _, name in launcher.ancestors(rank)}
    monkeypatch.setattr(launcher, "LAUNCHERS", names)
    assert names and not ours(rank)


def make(path, age):
    path.write_bytes(bytes(4096))
    os.utime(path, (age, age))
    return path


def test_files_of_mpi_that_nothing_uses_are_found(tmp_path):
    dead = make(tmp_path / "mpich_shm_12ab_0", OLD)
    make(tmp_path / "sm_segment.vm.0.1.0", time.time())  # of a job that is just starting
    make(tmp_path / "sem.other", OLD)
    (found,) = leftovers.segments(PROC, tmp_path)
    assert str(dead) in found.what
    found.remove()
    found.remove()  # it may be gone
    assert not dead.exists() and len(list(tmp_path.iterdir())) == 2


def test_files_that_a_process_has_mapped_stay():
    path = make(Path(f"/dev/shm/mpich_shm_test_{os.getpid()}"), OLD)
    command = "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0);"
    command += "print(flush=True); input()"
    user = subprocess.Popen(
        [sys.executable, "-c", command, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        user.stdout.readline()
        os.utime(path, (OLD, OLD))
        assert path not in [found.path for found in leftovers.segments(PROC, path.parent)]
        user.communicate(b"\n", timeout=20)
        assert path in [found.path for found in leftovers.segments(PROC, path.parent)]
    finally:
        user.kill()
        path.unlink()


def test_sessions_of_dead_launchers_are_found(tmp_path):
    child = subprocess.Popen(["true"])
    child.wait(timeout=20)
    dead = [tmp_path / f"ompi.{child.pid}", tmp_path / f"prte.n1.{child.pid}.0"]
    dead.append(tmp_path / f"ompi.n1.0/pid.{child.pid}")
    kept = [tmp_path / f"ompi.{os.getpid()}", tmp_path / f"ompi.n1.0/pid.{os.getpid()}"]
    for folder in [*dead, *kept]:
        (folder / "1").mkdir(parents=True)
    found = leftovers.sessions(PROC, tmp_path)
    assert {leftover.path for leftover in found} == set(dead)
    for leftover in leftovers.sessions(PROC, tmp_path):
        leftover.remove()
    assert not any(folder.exists() for folder in dead) and all(folder.exists() for folder in kept)
