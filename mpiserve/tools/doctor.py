"""`python -m mpiserve doctor`: looks at the world that it runs in; may print."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
from mpi4py import MPI

from mpiserve import terminal
from mpiserve._lib import core
from mpiserve.config import Config
from mpiserve.launch.run import abort
from mpiserve.launch.static_check import window_bytes
from mpiserve.mpi import check
from mpiserve.tools.diagnosis import Facts, Finding, find, mixed_levels, nodes

PREFIXES = ("MPISERVE_", "OMP_", "OMPI_", "PMI", "SLURM_", "CUDA_", "MV2_", "PALS_")
OK, FOUND = 0, 1  # exit statuses
PATIENCE = 5.0  # seconds that the others let rank 0 speak before they end the job themselves
PAUSE = 0.3  # seconds that the target of a measured operation calls nothing
BARRIERS = 31
ROUNDS = 20  # of the exchange of clocks; the fastest one counts


def doctor(config: Config | None = None) -> int:
    """Look, measure, print what is wrong and give the exit status. Collective over the world."""
    comm = MPI.COMM_WORLD
    refuse_mixed(comm)
    world = comm.allgather(facts(comm))
    progress = measured(comm, [facts.node for facts in world])
    found = find(world, window(config))
    if _speaks(comm, world[0]):
        show(world, progress, found)
    return FOUND if found else OK


def refuse_mixed(comm: MPI.Intracomm) -> None:
    """End the job where messages cannot be trusted, after the first of them. Collective."""
    levels = comm.allgather(check.thread_level(MPI))
    for finding in mixed_levels(MPI.Get_library_version(), levels):
        if comm.rank == 0:
            print_findings([finding])
        else:
            time.sleep(PATIENCE)  # rank 0 ends this too
        abort(comm, FOUND)


def facts(comm: MPI.Intracomm) -> Facts:
    """Collect what this rank knows of itself. Collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    lowest = node.bcast(comm.rank)
    barrier = median_barrier(node)
    node.Free()
    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    return Facts(
        rank=comm.rank,
        host=os.uname().nodename,
        node=lowest,
        cores=tuple(sorted(os.sched_getaffinity(0))),
        node_cores=os.cpu_count() or 1,
        world=comm.size,
        library=MPI.Get_library_version(),
        build=core.mpi_build(),
        level=check.thread_level(MPI),
        shm=shm.f_bavail * shm.f_frsize if shm else 0,
        gpus=len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        skew=skew(comm),
        barrier=barrier,
        environment={k: v for k, v in os.environ.items() if k.startswith(PREFIXES)},
    )


def median_barrier(comm: MPI.Comm) -> float:
    """Time barriers. Collective."""
    took = []
    for _ in range(BARRIERS):
        begin = time.perf_counter()
        comm.Barrier()
        took.append(time.perf_counter() - begin)
    return median(took)


def skew(comm: MPI.Intracomm) -> float:
    """Measure by how much this rank's clock is ahead of rank 0's. Collective."""
    own = 0.0
    for rank in range(1, comm.size):
        if comm.rank == 0:
            for _ in range(ROUNDS):
                comm.recv(source=rank)
                comm.send(time.time(), dest=rank)
        elif comm.rank == rank:
            own = min((exchange(comm) for _ in range(ROUNDS)), key=lambda pair: pair[0])[1]
    return own


def exchange(comm: MPI.Intracomm) -> tuple[float, float]:
    """Ask rank 0 for the time: how long that took, and the difference."""
    begin = time.time()
    comm.send(None, dest=0)
    theirs = comm.recv(source=0)
    end = time.time()
    return end - begin, (begin + end) / 2 - theirs


def measured(comm: MPI.Intracomm, where: list[int]) -> dict[str, float]:
    """Time a Put of rank 0 into ranks that call nothing meanwhile. Collective.

    Returns:
        Seconds, by "on a node" and "between nodes", as far as the world has both.
    """
    ranks = range(1, comm.size)
    found = {
        "on a node": next((rank for rank in ranks if where[rank] == where[0]), None),
        "between nodes": next((rank for rank in ranks if where[rank] != where[0]), None),
    }
    return {name: put(comm, rank) for name, rank in found.items() if rank is not None}


def put(comm: MPI.Intracomm, target: int) -> float:
    """Time one Put and flush into a rank that sleeps. Collective."""
    window = MPI.Win.Allocate(8, comm=comm)
    window.Lock_all()
    word, took = np.ones(1), 0.0
    for _ in range(2):  # connections are made in the first
        comm.Barrier()
        if comm.rank == target:
            time.sleep(PAUSE)
        elif comm.rank == 0:
            time.sleep(PAUSE / 6)  # the target must be asleep
            begin = time.perf_counter()
            window.Put(word, target)
            window.Flush(target)
            took = time.perf_counter() - begin
    window.Unlock_all()
    window.Free()
    return took


def window(config: Config | None) -> int:
    """The bytes of the largest memory of a rank in a window, about; 0 without one."""
    if config is None:
        return 0
    return max(window_bytes(group.services) for group in config.groups)


def _speaks(comm: MPI.Intracomm, first: Facts) -> bool:
    """Tell whether this rank prints: one of them, even where each has a world of its own."""
    launch = check.launched(first.environment)
    return comm.rank == 0 and (comm.size > 1 or launch is None or launch[2] == 0)


def show(world: list[Facts], progress: Mapping[str, float], found: list[Finding]) -> None:
    """Print what there is, and what is wrong with it."""
    from rich.table import Table

    table = Table("node", "ranks", "cores", "/dev/shm free", "GPUs", title="mpiserve doctor")
    for ranks in nodes(world).values():
        cores = {core for facts in ranks for core in facts.cores}
        shm = f"{min(facts.shm for facts in ranks) / 2**20:.0f} MiB"
        numbers = str(len(ranks)), f"{len(cores)} of {ranks[0].node_cores}", shm
        table.add_row(ranks[0].host, *numbers, str(ranks[0].gpus))
    terminal.console(width=110).print(table)
    first = world[0]
    print(f"{check.short(first.library)}, thread level {first.level}")
    pairs = [a.node == b.node for a in world for b in world if a.rank < b.rank]
    print(f"pairs of ranks: {sum(pairs)} over shared, {len(pairs) - sum(pairs)} over rma")
    for name, seconds in progress.items():
        helped = "needs no help of the target" if seconds < PAUSE / 3 else "waits for the target"
        print(f"a Put {name} {helped}: {1e6 * seconds:.0f} us into a rank that calls nothing")
    print_findings(found)


def print_findings(found: list[Finding]) -> None:
    """Print what is wrong and what mends it."""
    for finding in found:
        print(f"{finding.severity}: {finding.text}\n  mend it: {finding.remedy}")
    print(f"{len(found)} finding(s)", flush=True)
