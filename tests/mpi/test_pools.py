"""Ranks that serve several services: each request gets the answer of its own model."""

import time

import numpy as np
import pytest
from mpi.coupling import (
    INFERENCE,
    couple,
    keep_busy,
    numbers,
    once_in,
    python,
    scaling,
    tensor,
    total,
)
from mpi.models import WEIGHTS_MISSING
from mpi.test_queue import SHORT, Gate

from mpiserve import ModelError
from mpiserve.errors import QueueFullError

ROUNDS = 30
SERVICES = {
    # Slabs of another size and number for each, so that a segment out of place shows.
    "scale": scaling(max_batch_rows=300),
    "combine": python(
        "combine",
        [tensor("a", "float64", 5), tensor("b", "float64")],
        [tensor("difference", "float64"), tensor("product", "float64", 5)],
        max_batch_rows=200,
    ),
    "moody": python("moody", [tensor("x", "float32", 1)], [tensor("y", "float32", 1)]),
    "broken": python("Broken", [tensor("x", "float32", 1)], [tensor("y", "float32", 1)]),
    "echo": {"backend": "echo", "inputs": [tensor("x", "int32", 7)]},
}


def combined(a, b):
    return a.sum(axis=1) - b, a * b[:, None]


def check_all(session, rows, seed):
    """Ask every service at once, in an order that differs from rank to rank."""
    x, a = numbers(rows, 4, start=seed), numbers(rows, 5, start=seed)
    b, i = numbers(rows, start=-seed), np.arange(7 * rows, dtype=np.int32).reshape(rows, 7)
    right = np.zeros((1, 1), np.float32)
    calls = {"scale": (x,), "combine": (a, b), "echo": (i,), "moody": (right - 1,)}
    names = sorted(calls, key=lambda name: (len(name) * (session.comm.rank + 2)) % 11)
    requests = {name: session.service(name).submit(*calls[name]) for name in names}
    np.testing.assert_array_equal(requests["scale"].result(), 2 * x + 1)
    for got, expected in zip(requests["combine"].result(), combined(a, b), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(requests["echo"].result(), i)
    with pytest.raises(ModelError, match="negative input"):
        requests["moody"].result()
    session.comm.Barrier()  # a batch fails as a whole
    np.testing.assert_array_equal(session.service("moody")(right), right)
    session.comm.Barrier()


@pytest.mark.roles(simulation=4, inference=1)
@pytest.mark.timeout(120)
def test_several_services_in_one_rank_answer_each_its_own_requests(world):
    def simulate(session):
        with pytest.raises(ModelError, match=WEIGHTS_MISSING):
            session.service("broken")
        combine = session.service("combine")
        memory = combine.empty_input(60), combine.empty_output(60)
        for k in range(ROUNDS):
            # In the slot, and in rows of the slabs.
            check_all(session, 1 + k if k % 2 else 50 + k, 1000.0 * session.comm.rank + k)
            memory[0][0][:] = numbers(60, 5, start=k)
            memory[0][1][:] = numbers(60, start=session.comm.rank)
            combine(*memory[0], out=memory[1])
            for got, expected in zip(memory[1], combined(*memory[0]), strict=True):
                np.testing.assert_array_equal(got, expected)
        assert session.info()["counters"]["rma_to_simulation"] == 0

    pool = {"all": {"services": [*SERVICES]}}
    counters = couple(world, SERVICES, simulate, pool=pool)
    if world.role == INFERENCE:
        assert counters["requests"] == 4 * ROUNDS * 6
        assert counters["errors"] == 4 * ROUNDS


@pytest.mark.roles(simulation=3, inference=2)
def test_every_rank_of_a_pool_serves_all_of_its_services(world):
    def simulate(session):
        assert [service.replicas for service in session.services] == [2, 2]
        for k in range(ROUNDS):
            x = numbers(1 + 4 * k, 4, start=session.comm.rank)
            requests = [session.service(name).submit(x) for name in ("one", "two")]
            for request in requests:
                np.testing.assert_array_equal(request.result(), 2 * x + 1)
        session.comm.Barrier()

    services = {"one": scaling(), "two": scaling(max_batch_rows=128)}
    pool = {"pair": {"ranks": 2, "services": ["two", "one"]}}
    counters = couple(world, services, simulate, pool=pool)
    if world.role == INFERENCE:
        assert counters["requests"] > 0 and counters["errors"] == 0


def rates(session, *names):
    return keep_busy(session, dict.fromkeys(names, 2), settle=0.3, count=1.2)


@pytest.mark.roles(simulation=2, inference=2)
@pytest.mark.timeout(60)
def test_a_pool_follows_the_load_from_one_service_to_the_other(world):
    """Sleeping models of one request a batch: cores are no limit, ranks are."""

    def measure(session):
        shared_a, shared_b = rates(session, "a", "b")
        (alone,) = rates(session, "b")
        back, _ = rates(session, "a", "b")
        said = f"{shared_a:.0f} and {shared_b:.0f} requests/s, {alone:.0f} alone, {back:.0f} again"
        print(said)
        assert min(shared_a, shared_b) >= 0.7 * max(shared_a, shared_b), said
        assert alone >= 0.8 * (shared_a + shared_b), said
        assert back >= 0.7 * shared_a, said

    def simulate(session):
        once_in(3, lambda: measure(session))

    x, y = tensor("x", "float32", 1), tensor("y", "float32", 1)
    services = {name: python("moody", [x], [y], max_batch_rows=1) for name in "ab"}
    pool = {"both": {"ranks": 2, "services": ["a", "b"]}}
    couple(world, services, simulate, pool=pool)


# ---- a model that takes one request at a time ----------------------------------------------

ROOM_FOR_ONE = pytest.mark.roles(simulation=3, inference=2)
WAYS = pytest.mark.parametrize("way", ["pool", "adaptive"])
LIMIT = 10  # seconds


class Full(Gate):
    """A gate before a model in steps, with room for one request, on a rank of a pool."""

    def __init__(self, name, way):
        super().__init__(f"{name} {way}")
        self.way = way

    def couple(self, world, simulate, **settings):
        table = super().service(**settings)["noted"]
        table |= {"backend": "models:OneAtATime"}
        del table["model"]
        services = {"noted": table, "scale": scaling()}
        pools = {
            "pool": {"ranks": 1, "services": ["noted", "scale"]},
            "adaptive": {"ranks": 2, "services": ["noted", "scale"], "loaded": 1},
        }
        if self.way == "pool":
            services["echo"] = {"backend": "echo", "inputs": [tensor("x", "int32")]}
        return couple(world, services, simulate, pool={"both": pools[self.way]})

    def check_they_wait(self, session, requests):
        """Another service goes on; in a pool its rank looks at the queue of this one too."""
        session.comm.Barrier()
        for k in range(20):
            x = numbers(3, 4, start=k)
            np.testing.assert_array_equal(session.service("scale")(x), 2 * x + 1)
            sum(request.done() for request in requests)  # which sends what was not sent yet
        time.sleep(SHORT)
        session.comm.Barrier()
        assert self.seen() == [1], "the model has no room for more"


@ROOM_FOR_ONE
@WAYS
def test_what_finds_no_room_in_a_model_keeps_its_priority(world, way):
    gate = Full("room", way)
    asked = [(0, 10), (5, 20), (1, 30)]  # by rank: priority, value

    def simulate(session):
        service = session.service("noted")
        first = gate.occupy(session, service)
        priority, value = asked[session.comm.rank]
        request = service.submit(np.full(1, float(value)), priority=priority)
        gate.check_they_wait(session, [request])
        gate.open(session)
        assert request.result(timeout=LIMIT)[0] == 2 * value + 1
        assert first is None or first.result(timeout=LIMIT)[0] == 3
        session.comm.Barrier()
        assert gate.seen() == [1, 20, 30, 10]

    gate.couple(world, simulate, max_batch_rows=1)


def outcomes(requests):
    """How many are answered, and how many rejected."""
    rejected = 0
    for request in requests:
        try:
            assert request.result(timeout=LIMIT)[0] == 5
        except QueueFullError as error:
            assert "'noted': 2 rows wait already, max_queue_rows is 2" in error.text
            rejected += 1
    return len(requests) - rejected, rejected


@ROOM_FOR_ONE
@WAYS
@pytest.mark.parametrize(("on_full", "rejected"), [("reject", 4), ("wait", 0)])
def test_what_finds_no_room_in_a_model_fills_its_queue(world, way, on_full, rejected):
    gate = Full(f"queue {on_full}", way)

    def done(session, requests):
        return session.comm.allreduce(sum(request.done() for request in requests))

    def simulate(session):
        service = session.service("noted")
        first = gate.occupy(session, service)
        requests = [service.submit(np.full(1, 2.0)) for _ in range(2)]
        end = time.monotonic() + LIMIT
        while done(session, requests) < rejected and session.comm.bcast(time.monotonic() < end):
            time.sleep(0.001)
        gate.check_they_wait(session, requests)
        assert done(session, requests) == rejected
        gate.open(session)
        mine = outcomes(requests)
        assert [session.comm.allreduce(n) for n in mine] == [6 - rejected, rejected]
        assert first is None or first.result(timeout=LIMIT)[0] == 3

    limits = {"max_batch_rows": 1, "max_queue_rows": 2, "on_full": on_full}
    counters = gate.couple(world, simulate, **limits)
    assert total(world, counters, INFERENCE, "rejected") == rejected
    assert total(world, counters, INFERENCE, "errors") == rejected
