"""Who runs on which cores while something is measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mpi4py import MPI

from mpiserve.mpi.affinity import bind

CORES = os.sched_getaffinity(0)  # where the launcher lets this process run


@contextmanager
def apart(comm: MPI.Comm, serves: bool) -> Iterator[None]:
    """Give the rank that serves a core of its own meanwhile, as `partition.bind` does.

    Collective over comm.
    """
    bind(comm, int(serves))
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


@contextmanager
def anywhere() -> Iterator[None]:
    """Let the scheduler place this thread and what it starts meanwhile, as rivals run."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
