"""What a solver in Python that calls PhyDLL becomes: fields to the model, fields back."""

import numpy as np

import mpiserve

STEPS = 6


def start(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Each rank has its own part of the mesh."""
    u = (rank + np.arange(1, 8 + rank)) / 16
    return u, 1 - u


def show(name: str, rank: int, *fields: np.ndarray) -> None:
    """Print with all digits, so that answers can be compared."""
    print(name, rank, *(f"{value:.16e}" for value in np.concatenate(fields)), flush=True)


with mpiserve.open() as session:
    rank = session.comm.rank
    closure = session.service("closure")

    # In each step: send the fields, and wait for those of the model.
    u, v = start(rank)
    for _ in range(STEPS):
        source = closure(u=u, v=v)
        u, v = u + 0.125 * source.source_u, v + 0.125 * source.source_v
    show("blocking", rank, u, v)

    # Compute meanwhile: isend, irecv and their waits.
    u, v = start(rank)
    advected = 0.0
    for _ in range(STEPS):
        request = closure.submit(u, v)
        advected += u.mean()
        source_u, source_v = request.result(timeout=60)
        u, v = u + 0.125 * source_u, v + 0.125 * source_v
    show("overlapped", rank, u, v)

    # Every second step: between, the answer of the step before.
    u, v = start(rank)
    pace = closure.pace(every=2)
    for _ in range(STEPS):
        source_u, source_v = pace(u, v)
        u, v = u + 0.125 * source_u, v + 0.125 * source_v
    show("second", rank, u, v)
