"""Rows that belong together stay together, and what a model does to its input hurts nobody."""

import numpy as np
import pytest
from mpi.coupling import couple, tensor

ROUNDS = 8
ROWS, STEPS = 4, 3
FLOATS = {"inputs": [tensor("x", "float32", 2)], "outputs": [tensor("y", "float32", 2)]}


def served(model, backend="torch", **settings):
    return {"backend": backend, "model": f"row_models:{model}", **FLOATS, **settings}


SERVICES = {
    "mix": served("RowMix"),
    "callable": served("mean", "python"),
    "inplace": served("Inplace"),
    "keeper": served("Keeper"),
    "python_inplace": served("subtract", "python"),
    "same": served("Same", chunk_rows=4),
    "network": served("module", options={"arguments": {"name": "network"}}),
    "either": served("module", options={"arguments": {"name": "{version}"}}, version="twice"),
}
TOGETHER = {"mix", "callable", "keeper"}
POOL = {"all": {"ranks": 1, "services": list(SERVICES)}}


def rows_of(rank, step=0, n=ROWS):
    return np.arange(2 * n, dtype=np.float32).reshape(n, 2) + 100 * rank + 1000 * step


def ask_in_step(session, name, right, n=ROWS):
    """Ask what other ranks ask too, several requests at once; give the requests of each batch."""
    service, merged = session.service(name), []
    for step in range(ROUNDS):
        session.comm.Barrier()
        asked = [rows_of(session.comm.rank, step + k, n) for k in range(STEPS)]
        for x, request in [(x, service.submit(x)) for x in asked]:
            np.testing.assert_allclose(request.result(timeout=30), right(x), atol=1e-3)
            merged.append(request.stats["batch_requests"])
    return merged


def check_memory(session):
    """Ask with rows of the window, which the model is handed as they lie."""
    for name in "inplace", "python_inplace":
        service = session.service(name)
        x = service.empty_input(3)
        x[:] = 5
        for _ in range(3):
            np.testing.assert_array_equal(service(x), np.float32(8))
            assert (x == 5).all()
    keeper, x = session.service("keeper"), session.service("keeper").empty_input(3)
    answers = []
    for step in range(4):
        x[:] = step
        answers.append(float(keeper(x)[0, 0]))
    assert answers[1:] == [0, 1, 2]


def check_reload(session):
    """A version of another kind is asked in its own way, from its first batch on."""
    for version, right in ("mean", lambda x: x - x.mean(0)), ("twice", lambda x: 2 * x):
        session.comm.Barrier()
        if session.comm.rank == 0:
            session.reload("either", version, timeout=60)
        session.comm.Barrier()
        merged = ask_in_step(session, "either", right)
        assert (max(merged) == 1) == (version == "mean")


@pytest.mark.roles(simulation=2, inference=1)
@pytest.mark.timeout(90)
def test_each_request_is_answered_as_if_it_were_alone(world):
    def simulate(session):
        infos = session.info()["services"]
        assert {info["name"] for info in infos if info["rows"] == "together"} == TOGETHER
        for name in "mix", "callable":
            assert max(ask_in_step(session, name, lambda x: x - x.mean(0))) == 1
            assert max(ask_in_step(session, name, lambda x: x - x.mean(0), n=600)) == 1
        assert max(ask_in_step(session, "same", lambda x: 2 * x, n=9)) > 1
        if session.comm.rank == 0:
            check_memory(session)
        check_reload(session)

    couple(world, SERVICES, simulate, pool=POOL)
