"""What a script that calls SmartRedis becomes: put, run, get, one or several at a time."""

import numpy as np

import mpiserve


def paint(rank: int, number: int) -> np.ndarray:
    """An image of the simulation, another one for each rank and number: bytes from 0 to 127."""
    i = np.arange(1, 3 * 24 * 32 + 1)
    return ((7 * i + rank + 10 * number) % 128).astype(np.uint8).reshape(1, 3, 24, 32)


def show(name: str, rank: int, values: np.ndarray) -> None:
    """Print with all digits, so that answers can be compared."""
    print(name, rank, *(f"{value:.8e}" for value in values.ravel()), flush=True)


with mpiserve.open() as session:
    rank = session.comm.rank
    network = session.service("image")

    # One image: put_tensor, run_script, run_model and get_tensor are one call.
    show("one", rank, network(paint(rank, 0)))

    # Several at once: no keys, since each request has its own result.
    pending = [network.submit(paint(rank, k)) for k in (1, 2, 3)]
    show("several", rank, np.concatenate([request.result() for request in pending]))
