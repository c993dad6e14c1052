"""What tests on several hosts can use: the hosts, and MPI jobs on them.

Where hosts cannot be had the tests are skipped, with the reason; MPISERVE_CLUSTER=required, which
`make test-cluster` sets, makes that a failure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mpijob
import pytest
from cluster import hosts

NAMES = ("n1", "n2", "n3")


def need(problem: str | None) -> None:
    """Skip, or fail, if something is missing."""
    if problem and os.environ.get("MPISERVE_CLUSTER") == "required":
        pytest.fail(problem, pytrace=False)
    if problem:
        pytest.skip(problem)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Hosts]:
    """Three hosts, n1 to n3, for the tests of a module."""
    need(hosts.missing())
    with hosts.Hosts(NAMES, tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture
def on_hosts(cluster: hosts.Hosts, tmp_path: Path) -> Any:
    """Run an MPI job: on_hosts({"n1": 3, "n2": 1}, [PYTHON, "-m", ...]), its launcher on n1."""

    def run(
        slots: Mapping[str, int],
        *programs: list[Any],
        timeout: float = 60,
        env: dict[str, str] | None = None,
    ) -> Any:
        usual = {
            "MPISERVE_TRANSPORT": "auto",
            # Open MPI 5 with :oversubscribe places each program of an MPMD job anew, on the first
            # host. There are slots for all here, so it does not know that they exceed the cores.
            "PRTE_MCA_rmaps_default_mapping_policy": "slot",
            "OMPI_MCA_mpi_yield_when_idle": "1",
        }
        settings = mpijob.settings() | usual | (env or {})
        command = [
            settings["MPIEXEC"],
            *launcher_flags(cluster, slots, tmp_path),
            *joined(programs),
        ]
        command = cluster.on("n1", command, tmp_path)
        result = mpijob.run(command, timeout=timeout, env=settings)
        print("$", *command, f"\n[exit {result.returncode}]\n{result.stdout}", flush=True)
        print(result.stderr, file=sys.stderr, flush=True)
        return result

    return run


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
