"""Cores of their own for the inference ranks of a node, where the launcher bound nobody."""

from __future__ import annotations

import logging
import os

from mpi4py import MPI

from mpiserve.config.partition import cores_of

logger = logging.getLogger("mpiserve")


def bind(comm: MPI.Comm, threads: int) -> None:
    """Keep this rank to its share of the node's cores. Collective over comm.

    Args:
        comm: The world, or its inference ranks, if the others are bound by somebody else.
        threads: What this rank runs as an inference rank; 0 on a simulation rank.
    """
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    every = node.allgather((threads, sorted(os.sched_getaffinity(0))))
    rank = node.rank
    node.Free()
    serving = [number for number, (count, _) in enumerate(every) if count]
    if not serving:
        return
    cores = every[0][1]
    if any(mine != cores for _, mine in every):
        return _say(rank, "the launcher has bound the ranks of this node to cores: left as it is")
    shares = cores_of(cores, [every[number][0] for number in serving])
    if shares is None:
        wanted = sum(every[number][0] for number in serving)
        return _say(rank, f"{len(cores)} cores on this node are too few to give {wanted} away")
    position = serving.index(rank) if rank in serving else -1
    os.sched_setaffinity(0, shares[position])
    if threads:
        logger.info("bound to cores %s", ",".join(map(str, shares[position])))


def _say(rank: int, text: str) -> None:
    if rank == 0:
        logger.warning("partition.bind: %s", text)
