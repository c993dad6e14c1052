"""Ten thousand requests from 5 simulation ranks to 2 services of 2 replicas."""

import ml_dtypes
import numpy as np
import pytest
from mpi.coupling import INFERENCE, SIMULATION, couple, python, tensor, total

from mpiserve.config import DTYPES

EACH = 2000
WIDTH = 3
LIMIT = 256  # rows of a batch


def services():
    """Two signatures which hold all dtypes between them."""
    mirrored = [tensor(f"m_{name}", name, WIDTH) for name in DTYPES[::2]]
    echoed = [tensor(f"e_{name}", name, WIDTH) for name in DTYPES[1::2]]
    policy = {"replicas": 2, "max_batch_rows": LIMIT}
    return {
        "mirror": python("mirror", mirrored, mirrored, **policy),
        "echo": {"backend": "echo", "inputs": echoed, **policy},
    }


def question(random, service, rows):
    arrays = []
    for described in service.inputs:
        name = described.dtype
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        data = np.frombuffer(random.bytes(rows * WIDTH * dtype.itemsize), np.uint8)
        arrays.append((data & 1 if name == "bool" else data).view(dtype).reshape(rows, WIDTH))
    return arrays


def check(service, request, sent):
    for before, after in zip(sent, request.result(), strict=True):
        expected = before[:, ::-1] if service.name == "mirror" else before
        assert after.shape == before.shape
        assert after.tobytes() == expected.tobytes()


def ask(session, rows_sent):
    random = np.random.default_rng(session.comm.rank)
    found = [session.service("mirror"), session.service("echo")]
    waiting = []
    for _ in range(EACH):
        service = found[random.integers(2)]
        rows = int(random.integers(1, 6) if random.random() < 0.8 else random.integers(6, LIMIT))
        sent = question(random, service, rows)
        rows_sent.append(rows)
        waiting.append((service, service.submit(*sent), sent))
        while len(waiting) > random.integers(12):
            check(*waiting.pop(random.integers(len(waiting))))
    for entry in waiting:
        check(*entry)


@pytest.mark.timeout(120)
@pytest.mark.roles(simulation=5, inference=4)
def test_each_of_ten_thousand_requests_is_answered_once(world):
    rows_sent = []
    counters = couple(world, services(), lambda session: ask(session, rows_sent))
    everything = sum(world.comm.allgather(sum(rows_sent)))
    for role in (SIMULATION, INFERENCE):
        assert total(world, counters, role, "requests") == 5 * EACH
        assert total(world, counters, role, "rows") == everything
        assert total(world, counters, role, "errors") == 0
    served = world.comm.allgather(counters["requests"])
    assert all(served), "a replica, or a client, had nothing to do"
