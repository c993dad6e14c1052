"""The communicators among ranks that work together, and their nodes. All is collective."""

from __future__ import annotations

from mpi4py import MPI

from mpiserve.config import Config
from mpiserve.config.partition import Assignment, assign


def of_replica(comm: MPI.Comm, config: Config, assignment: Assignment) -> MPI.Comm:
    """Return the ranks of this rank's replica."""
    replicas = [(each.spare, each.service.name, each.replica) for each in assign(config, comm.size)]
    color = replicas.index((assignment.spare, assignment.service.name, assignment.replica))
    return comm.Split(color, assignment.tp_index)


def of_pool(comm: MPI.Comm, config: Config, assignment: Assignment) -> MPI.Comm | None:
    """Return the ranks of this rank's adaptive pool, if any. Collective if there is one."""
    if not any(pool.loaded for pool in config.pool.values()):
        return None
    mine = bool(assignment.pool and assignment.pool.loaded)
    names = [service.name for service in config.services]
    color = names.index(assignment.service.name) if mine else MPI.UNDEFINED
    found = comm.Split(color, assignment.replica)
    return found if mine else None


def local_rank(comm: MPI.Comm) -> int:
    """Return the position of this rank among the inference ranks of its node."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    rank = node.rank
    node.Free()
    return rank


def nodes(comm: MPI.Comm) -> list[int]:
    """Return the lowest rank of each rank's node."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    first = node.bcast(comm.rank)
    node.Free()
    return comm.allgather(first)
