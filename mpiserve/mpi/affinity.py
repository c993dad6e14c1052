"""Bind the inference ranks of a node to cores of their own, if the launcher bound no rank."""

from __future__ import annotations

import logging
import os

from mpi4py import MPI

from mpiserve.config.partition import cores_of

logger = logging.getLogger("mpiserve")


def bind(comm: MPI.Comm, threads: int) -> None:
    """Bind this rank to its share of the node's cores. Collective over comm.

    Args:
        comm: The world, or only its inference ranks, if another program binds the others.
        threads: The threads of an inference rank; 0 on a simulation rank.
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
        return _warn(rank, "the launcher has bound the ranks of this node to cores: left as it is")
    shares = cores_of(cores, [every[number][0] for number in serving])
    if shares is None:
        wanted = sum(every[number][0] for number in serving)
        text = f"this node has {len(cores)} cores, and the inference ranks take {wanted}"
        return _warn(rank, f"{text}: lower threads, or use more nodes")
    position = serving.index(rank) if rank in serving else -1
    os.sched_setaffinity(0, shares[position])
    if threads:
        logger.info("bound to cores %s", ",".join(map(str, shares[position])))


def _warn(rank: int, text: str) -> None:
    if rank == 0:
        logger.warning("partition.bind: %s", text)
