"""Bind ranks and threads to cores during a measurement."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mpi4py import MPI

from mpiserve.mpi.affinity import bind

CORES = os.sched_getaffinity(0)  # the cores that the launcher gives this process


@contextmanager
def apart(comm: MPI.Comm, serves: bool) -> Iterator[None]:
    """Bind the rank that serves to a core of its own, as `partition.bind` does.

    Collective over comm.
    """
    bind(comm, int(serves))
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


@contextmanager
def together() -> Iterator[None]:
    """Bind this rank to the first core that it may use: the same one on both ranks of a node."""
    os.sched_setaffinity(0, {min(CORES)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


@contextmanager
def anywhere() -> Iterator[None]:
    """Let the scheduler place this thread and those that it starts, as alternatives run."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
