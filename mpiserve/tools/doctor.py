"""`python -m mpiserve doctor`: examine the world that it runs in, and print the problems."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from itertools import chain
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
from mpiserve.tools import leftovers
from mpiserve.tools.diagnosis import Facts, Finding, find, mixed_levels, nodes

PREFIXES = ("MPISERVE_", "OMP_", "OMPI_", "PMI", "SLURM_", "CUDA_", "MV2_", "PALS_")
OK, FOUND = 0, 1  # exit statuses
GRACE = 5.0  # seconds that rank 0 has to print before the others end the job
PAUSE = 0.3  # seconds for which the target of a measured operation does not call MPI
BARRIERS = 31
ROUNDS = 20  # exchanges of clocks; the fastest one counts


def doctor(config: Config | None = None, *, clean: bool = False) -> int:
    """Examine the world, print the problems and return the exit status. Collective.

    With `clean`, remove what dead jobs of this user have left on the nodes.
    """
    comm = MPI.COMM_WORLD
    refuse_mixed(comm)
    world = comm.allgather(facts(comm))
    progress = measured(comm, [facts.node for facts in world])
    found = find(world, window(config)) + remains(comm, world, clean=clean)
    if _prints(comm, world[0]):
        show(world, progress, found)
    return FOUND if found else OK


def refuse_mixed(comm: MPI.Intracomm) -> None:
    """End the job if mixed thread levels can corrupt messages. Collective."""
    levels = comm.allgather(check.thread_level(MPI))
    for finding in mixed_levels(MPI.Get_library_version(), levels):
        if comm.rank == 0:
            print_findings([finding])
        else:
            time.sleep(GRACE)  # rank 0 normally ends the job before
        abort(comm, FOUND)


def facts(comm: MPI.Intracomm) -> Facts:
    """Collect the facts of this rank. Collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    lowest = node.bcast(comm.rank)
    barrier = median_barrier(node)
    node.Free()
    return Facts(
        rank=comm.rank,
        host=os.uname().nodename,
        node=lowest,
        cores=tuple(sorted(os.sched_getaffinity(0))),
        node_cores=os.cpu_count() or 1,
        world=comm.size,
        library=check.library(MPI),
        build=core.mpi_build(),
        level=check.thread_level(MPI),
        memory=available_memory(),
        gpus=len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        skew=skew(comm),
        barrier=barrier,
        kernel=grouping_kernel(),
        environment={k: v for k, v in os.environ.items() if k.startswith(PREFIXES)},
    )


def available_memory() -> int | None:
    """Return the bytes of memory that the machine can still give; None if unknown."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable: *(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) << 10 if found else None


def grouping_kernel() -> str:
    """Return the release of Linux, if it schedules each session as a group; else ""."""
    try:
        grouped = Path("/proc/sys/kernel/sched_autogroup_enabled").read_text().strip() == "1"
    except OSError:
        return ""
    return os.uname().release if grouped else ""


def remains(comm: MPI.Intracomm, world: list[Facts], *, clean: bool) -> list[Finding]:
    """Find what dead jobs have left, on one rank of each node; remove it if asked. Collective."""
    mine = world[comm.rank]
    left = leftovers.find() if mine.node == comm.rank else []
    for leftover in left if clean else ():
        leftover.remove()
    texts = [f"host {mine.host}: {leftover.what}" for leftover in left]
    every = chain.from_iterable(comm.allgather(texts))
    remedy = "removed" if clean else "`python -m mpiserve doctor --clean` removes it"
    return [Finding("warning", f"left by a dead job: {text}", remedy) for text in every]


def median_barrier(comm: MPI.Comm) -> float:
    """Return the median time of a barrier. Collective."""
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
    """Get the time of rank 0; return how long that took, and the difference."""
    begin = time.time()
    comm.send(None, dest=0)
    theirs = comm.recv(source=0)
    end = time.time()
    return end - begin, (begin + end) / 2 - theirs


def measured(comm: MPI.Intracomm, where: list[int]) -> dict[str, float]:
    """Time a Put of rank 0 into ranks that do not call MPI. Collective.

    Returns:
        Seconds, by "on a node" and "between nodes", as far as the world has such pairs.
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
    for _ in range(2):  # the first one includes making connections
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
    """Estimate the bytes of the rank that needs most; 0 without a configuration."""
    if config is None:
        return 0
    return max(window_bytes(group.services) for group in config.groups)


def _prints(comm: MPI.Intracomm, first: Facts) -> bool:
    """Return whether this rank prints; one rank does, even if each has a world of its own."""
    launch = check.launched(first.environment)
    return comm.rank == 0 and (comm.size > 1 or launch is None or launch[2] == 0)


def show(world: list[Facts], progress: Mapping[str, float], found: list[Finding]) -> None:
    """Print the nodes, the measurements and the problems."""
    from rich.table import Table

    table = Table("node", "ranks", "cores", "memory free", "GPUs", title="mpiserve doctor")
    for ranks in nodes(world).values():
        cores = {core for facts in ranks for core in facts.cores}
        memory = "" if ranks[0].memory is None else f"{ranks[0].memory / 2**20:.0f} MiB"
        numbers = str(len(ranks)), f"{len(cores)} of {ranks[0].node_cores}", memory
        table.add_row(ranks[0].host, *numbers, str(ranks[0].gpus))
    terminal.console(width=110).print(table)
    first = world[0]
    print(f"{check.short(first.library)}, thread level {first.level}")
    pairs = [a.node == b.node for a in world for b in world if a.rank < b.rank]
    print(f"pairs of ranks: {sum(pairs)} over shared, {len(pairs) - sum(pairs)} over rma")
    for name, seconds in progress.items():
        passive = "needs no help of the target" if seconds < PAUSE / 3 else "waits for the target"
        print(f"a Put {name} {passive}: {1e6 * seconds:.0f} us into a rank that calls nothing")
    print_findings(found)


def print_findings(found: list[Finding]) -> None:
    """Print the problems and their remedies."""
    for finding in found:
        print(f"{finding.severity}: {finding.text}\n  remedy: {finding.remedy}")
    print(f"{len(found)} finding(s)", flush=True)
