"""What a client of Triton becomes inside of the job: no server, no names of tensors, no copies."""

import numpy as np

import mpiserve


def ask(session: mpiserve.Session) -> None:
    """Ask the model that triton_client.py asks from outside."""
    rank = session.comm.rank
    images = (np.arange(2 * 3 * 24 * 32) % 23 / 16).astype(np.float32).reshape(2, 3, 24, 32)
    scores = session.service("image")(images)
    print("inside", rank, *(f"{value:.8e}" for value in scores.ravel()), flush=True)


if __name__ == "__main__":
    with mpiserve.open() as session:
        ask(session)
