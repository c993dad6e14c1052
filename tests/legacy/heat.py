"""heat.c in Python: says COMM_WORLD everywhere and knows nothing of mpiserve."""

import numpy as np
from mpi4py import MPI
from mpi4py.MPI import COMM_WORLD

CELLS, STEPS = 16, 50


def say(what, mine):
    total = COMM_WORLD.reduce(mine, MPI.SUM, 0)
    most = MPI.COMM_WORLD.allreduce(mine, MPI.MAX)
    if MPI.COMM_WORLD.rank == 0:
        print(f"{what}: {total:.12g} {most:.12g}", flush=True)


def heat():
    dims = MPI.Compute_dims(COMM_WORLD.size, 2)
    plate = COMM_WORLD.Create_cart(dims, periods=[True, False])
    cell = np.zeros((CELLS + 2, CELLS + 2))
    cell[1:-1, 1:-1] = np.outer(np.arange(CELLS), np.arange(CELLS)) % 7 + COMM_WORLD.rank
    for _ in range(STEPS):
        for axis in (0, 1):
            low, high = plate.Shift(axis, 1)
            view = cell if axis == 0 else cell.T
            for source, dest, mine, halo in ((low, high, -2, 0), (high, low, 1, -1)):
                got = np.zeros(CELLS + 2)
                plate.Sendrecv(np.ascontiguousarray(view[mine]), dest, 0, got, source, 0)
                view[halo] = got
        cell[1:-1, 1:-1] = (cell[:-2, 1:-1] + cell[2:, 1:-1] + cell[1:-1, :-2] + cell[1:-1, 2:]) / 4
    say("heat", float(cell[1:-1, 1:-1].sum()))


def splits():
    half = COMM_WORLD.Split(COMM_WORLD.rank % 2, -COMM_WORLD.rank)
    say("rank in my half", 10 * half.rank + half.size)
    say("ranks of my node", COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED).size)
    say("it is itself", MPI.Comm.Compare(COMM_WORLD, MPI.COMM_WORLD) == MPI.IDENT)
    say("it has its name", COMM_WORLD.Get_name() == "MPI_COMM_WORLD")


def windows():
    window = MPI.Win.Allocate(4096, 1, MPI.INFO_NULL, COMM_WORLD)
    memory = np.frombuffer(window, np.float64)
    window.Fence()
    window.Put(np.full(1, 100.0 + COMM_WORLD.rank), (COMM_WORLD.rank + 1) % COMM_WORLD.size)
    window.Fence()
    say("put by my neighbour", float(memory[0]))
    window.Free()


def errors():
    try:
        COMM_WORLD.send(1, COMM_WORLD.size)
    except MPI.Exception:
        say("no such rank", 1)


heat()
splits()
windows()
errors()
