"""What tests on several hosts can use: the hosts, and MPI jobs on them.

Where hosts cannot be had the tests are skipped, with the reason; MPISERVE_CLUSTER=required, which
`make test-cluster` sets, makes that a failure.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mpijob
import pytest
from cluster import hosts

NAMES = ("n1", "n2")
long = pytest.mark.skipif(
    os.environ.get("MPISERVE_CLUSTER") != "required",
    reason="this takes long: make test-cluster runs it",
)


def need(problem: str | None) -> None:
    """Skip, or fail, if something is missing."""
    if problem and os.environ.get("MPISERVE_CLUSTER") == "required":
        pytest.fail(problem, pytrace=False)
    if problem:
        pytest.skip(problem)


@contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder for sockets, whose paths must be short: pytest's own may be too long."""
    with tempfile.TemporaryDirectory(prefix="mpiserve-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def cluster() -> Iterator[hosts.Hosts]:
    """Two hosts, n1 and n2."""
    need(hosts.missing())
    with short_folder() as folder, hosts.Hosts(NAMES, folder) as made:
        yield made


class OnHosts:
    """Runs MPI jobs: on_hosts({"n1": 3, "n2": 1}, ["-n", 4, PYTHON, ...]), their launcher on n1."""

    def __init__(self, cluster: hosts.Hosts, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder

    def command(
        self, slots: Mapping[str, int], programs: tuple[list[Any], ...], env: dict[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        """Return the command line and the environment of a job."""
        usual = {
            "MPISERVE_TRANSPORT": "auto",
            # Open MPI 5 with :oversubscribe places each program of an MPMD job anew, on the first
            # host. There are slots for all here, so it does not know that they exceed the cores.
            "PRTE_MCA_rmaps_default_mapping_policy": "slot",
            "OMPI_MCA_mpi_yield_when_idle": "1",
            # Each host's own: its folders there have names of process ids, which hosts share.
            "TMPDIR": "/dev/shm",
        }
        settings = mpijob.settings() | usual | env
        flags = launcher_flags(self.cluster, slots, self.folder)
        command = [settings["MPIEXEC"], *flags, *joined(programs)]
        return self.cluster.on("n1", command, self.folder), settings

    def __call__(
        self,
        slots: Mapping[str, int],
        *programs: list[Any],
        timeout: float = 60,
        env: dict[str, str] | None = None,
    ) -> Any:
        """Run a job to its end."""
        command, settings = self.command(slots, programs, env or {})
        result = mpijob.run(command, timeout=mpijob.PATIENCE * timeout, env=settings)
        print("$", *command, f"\n[exit {result.returncode}]\n{result.stdout}", flush=True)
        print(result.stderr, file=sys.stderr, flush=True)
        return result

    @contextmanager
    def started(
        self, slots: Mapping[str, int], *programs: list[Any], env: dict[str, str]
    ) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """Run a job meanwhile: give its launcher, and the file of what it says."""
        command, settings = self.command(slots, programs, env)
        log = self.folder / "job.log"
        with log.open("wb") as file:
            job = subprocess.Popen(
                command,
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            yield job, log
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)  # the hosts' end is that of the ranks
            job.wait()
            print(log.read_text(errors="replace"))


@pytest.fixture
def on_hosts(cluster: hosts.Hosts, tmp_path: Path) -> OnHosts:
    """MPI jobs on the hosts, in this test's folder."""
    return OnHosts(cluster, tmp_path)


def joined(programs: tuple[list[Any], ...]) -> list[str]:
    """Return the programs of an MPMD job as the launcher wants them."""
    words: list[str] = []
    for program in programs:
        words += [":"] * bool(words) + list(map(str, program))
    return words


def launcher_flags(cluster: hosts.Hosts, slots: Mapping[str, int], folder: Path) -> list[str]:
    """Return what tells a launcher about the hosts, the way to them, and their network."""
    flavour = mpijob.flavour(mpijob.mpiexec())
    between = ":" if flavour == "mpich" else " slots="
    file = folder / "hostfile"
    file.write_text("".join(f"{name}{between}{count}\n" for name, count in slots.items()))
    shell, network = str(cluster.remote_shell), f"{hosts.NETWORK}.0/24"
    if flavour == "mpich":
        return ["-launcher", "ssh", "-launcher-exec", shell, "-f", str(file)]
    if flavour == "openmpi":
        agent = ["--prtemca", "plm_ssh_agent", shell]
    else:
        agent = ["--mca", "plm_rsh_agent", shell, "--mca", "oob_tcp_if_include", network]
    return [
        *agent,
        "--hostfile",
        str(file),
        "--mca",
        "btl_tcp_if_include",
        network,
    ]
