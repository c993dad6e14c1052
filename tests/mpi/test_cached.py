"""Answers that are kept at the head: what the model gets, and when they are forgotten."""

import time

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, numbers, python, scaling, tensor

from mpiserve.errors import Code, ModelError

pytestmark = pytest.mark.every_mpi

LIMIT = 60


def rows_of(counters):
    """Give the rows that the head has answered, and those that were kept."""
    return counters["cache_lookups"], counters["cache_hits"]


def ask(service, x, kept=None):
    """Ask for 2 x + 1; say whether no batch was formed."""
    request = service.submit(x)
    np.testing.assert_array_equal(request.result(timeout=LIMIT), 2 * x + 1)
    if kept is not None:
        assert (request.stats["batch_requests"] == 0) == kept
    return request.stats


def begin(session, name, *tensors):
    """Ask for a row: after its batch the library hands batches over to the child, without Python.

    That is another engine, which begins with nothing.
    """
    service = session.service(name)
    session.comm.Barrier()  # all of them count
    service(*tensors, timeout=LIMIT)
    session.comm.Barrier()
    return service


FIRST = np.full((1, 4), -1e6)


@pytest.mark.roles(simulation=2, inference=1)
def test_rows_are_kept_for_all_ranks_however_they_are_sent(world):
    sizes = (1, 12, 60, 200)  # in a slot, in leased rows, in pieces

    def simulate(session):
        service, comm = begin(session, "scale", FIRST), session.comm
        for turn in range(2):
            for start, rows in enumerate(sizes):
                x = numbers(rows, 4, start=1e4 * start)
                if comm.rank == turn:
                    ask(service, x, kept=turn == 1)
                    ask(service, x, kept=True)
            comm.Barrier()
        if comm.rank == 0:
            x = numbers(60, 4, start=3e4)
            x[::7, 1] += 0.5
            assert ask(service, x)["batch_rows"] == len(x[::7]), "only what is new"
            inputs, outputs = service.empty_input(60), service.empty_output(60)
            inputs[...] = x[::-1]
            request = service.submit(inputs, out=outputs)
            np.testing.assert_array_equal(request.result(timeout=LIMIT), 2 * inputs + 1)
            assert request.stats["batch_rows"] == 0

    table = scaling(cache_rows=1000, max_batch_rows=64)
    counters = couple(world, {"scale": table}, simulate)
    if world.role == INFERENCE:
        new, every = 2 + sum(sizes) + 9, 2 + 4 * sum(sizes) + 2 * 60  # 2 were the first ones
        assert rows_of(counters) == (every, every - new)
        assert counters["rows"] == every
        pieces = 3 + 4  # of each size
        assert counters["cached_requests"] == 3 * pieces + 1
        assert counters["requests"] == 2 + 4 * pieces + 2


@pytest.mark.roles(simulation=1, inference=2)
def test_what_is_equal_says_the_step(world):
    def simulate(session):
        service, x = begin(session, "scale", FIRST), numbers(3, 4)
        ask(service, x, kept=False)
        for change in (0.04, -0.04):
            request = service.submit(x + change)
            np.testing.assert_array_equal(request.result(), 2 * x + 1)
            assert request.stats["batch_requests"] == 0
        ask(service, x + 0.06, kept=False)
        ask(session.service("exact"), x, kept=False)
        ask(session.service("exact"), x + 1e-9, kept=False)
        zero = np.zeros((1, 4))
        ask(session.service("exact"), zero, kept=False)
        ask(session.service("exact"), -zero, kept=False)

    services = {"scale": scaling(cache_rows=9, cache_step=0.1), "exact": scaling(cache_rows=9)}
    couple(world, services, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_no_more_rows_are_kept_than_the_table_says(world):
    def simulate(session):
        service, x = begin(session, "scale", FIRST), numbers(40, 4)
        ask(service, x[:8])
        ask(service, x[:8], kept=True)
        ask(service, x[8:16])
        ask(service, x[8:16], kept=True)
        assert ask(service, x)["batch_rows"] >= 32

    couple(world, {"scale": scaling(cache_rows=8)}, simulate)


@pytest.mark.roles(simulation=3, inference=1)
@pytest.mark.timeout(60)
def test_a_row_that_is_kept_waits_for_no_rank_and_no_rank_for_its_client(world):
    def simulate(session):
        service, comm = begin(session, "scale", FIRST), session.comm
        ask(service, numbers(1, 4, start=comm.rank), kept=False)
        comm.Barrier()
        request = service.submit(numbers(1, 4, start=-9)) if comm.rank == 0 else None
        for turn in (1, 2):
            comm.Barrier()
            if request:
                assert not request.done(), "its batch waits for the others"
            if comm.rank == turn:
                time.sleep(0.3)  # the head sleeps, and only the last of those it waits for wakes it
                ask(service, numbers(1, 4, start=comm.rank), kept=True)
            comm.Barrier()
        if request:
            np.testing.assert_array_equal(request.result(timeout=20), [[-17, -15, -13, -11]])

    couple(world, {"scale": scaling(cache_rows=9, max_delay_us=600_000_000)}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_what_waits_in_the_queue_is_kept_then(world):
    def simulate(session):
        service, x = begin(session, "scale", FIRST), numbers(1, 4)
        requests = [service.submit(x) for _ in range(8)]
        for request in requests:
            np.testing.assert_array_equal(request.result(timeout=LIMIT), 2 * x + 1)

    counters = couple(world, {"scale": scaling(cache_rows=9, max_batch_rows=1)}, simulate)
    if world.role == INFERENCE:
        assert counters["batches"] == 2
        assert rows_of(counters) == (1 + 8, 7)


# ---- versions


@pytest.mark.roles(simulation=2, inference=1)
@pytest.mark.timeout(90)
def test_another_version_begins_with_nothing(world):
    def simulate(session):
        service, comm = session.service("model"), session.comm
        x = numbers(5, 3)
        for version in (1, 2, 3):
            comm.Barrier()
            if comm.rank == 0 and version > 1:
                session.reload("model", version=str(version), timeout=LIMIT)
            comm.Barrier()
            for _ in range(4):
                request = service.submit(x)
                y, by, _ = request.result(timeout=LIMIT)
                np.testing.assert_array_equal(y, 3 * x)
                assert (by == version).all(), "an answer of the version before was kept"
                assert request.stats["generation"] == version
            assert request.stats["batch_requests"] == 0
        comm.Barrier()
        if comm.rank == 0:
            with pytest.raises(ModelError, match="are missing"):
                session.reload("model", version="missing", timeout=LIMIT)
            session.unload("model", timeout=LIMIT)
        comm.Barrier()
        with pytest.raises(ModelError, match="unloaded"):
            service(x, timeout=LIMIT)

    outputs = [tensor("y", "float64", 3), tensor("by", "float64"), tensor("at", "float64")]
    table = {"options": {"version": "{version}"}, "version": "1", "cache_rows": 100}
    model = python("Versioned", [tensor("x", "float64", 3)], outputs, **table)
    couple(world, {"model": model}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.timeout(120)
def test_derivatives_keep_answers_of_their_own(world):
    def simulate(session):
        net, x = session.service("net"), np.linspace(1, 2, 12).reshape(4, 3)
        v = x[::-1].copy()
        for version in (1, 2):
            if version == 2:
                session.reload("net", "2", timeout=LIMIT)
            for _ in range(2):
                np.testing.assert_allclose(net(x), version * x**3)
                y, product = session.service("net.vjp")(x, v)
                np.testing.assert_allclose(y, version * x**3)
                np.testing.assert_allclose(product, v * 3 * version * x**2)
                np.testing.assert_allclose(net.vjp(x, x)[1], x * 3 * version * x**2)

    table = {"backend": "torch", "model": "models:cubes", "isolate": False, "version": "1"}
    table |= {"options": {"arguments": {"version": "{version}"}}, "derivatives": ["vjp"]}
    table |= {"inputs": [tensor("x", "float64", 3)], "outputs": [tensor("y", "float64", 3)]}
    counters = couple(world, {"net": table | {"cache_rows": 99}}, simulate)
    if world.role == INFERENCE:
        assert rows_of(counters) == (2 * 2 * 3 * 4, 2 * 3 * 4)


# ---- rows that are no answers, or doubtful


@pytest.mark.roles(simulation=1, inference=1)
def test_rows_that_are_kept_are_checked_and_trusted_as_before(world):
    def simulate(session):
        service = begin(session, "doubtful", np.full((1, 2), 1e5))
        x = np.floor(numbers(6, 2)) + 0.25
        x[2, 1] += 0.5
        x[4] = 3e6  # beyond max
        given = []
        for kept in (False, True):
            with pytest.raises(ModelError, match="row 4: 6e"):
                service(x)
            request = service.submit(x[:4])
            np.testing.assert_array_equal(request.result(), 2 * x[:4])
            assert request.trusted.tolist() == [True, True, False, True]
            assert kept == (request.stats["batch_requests"] == 0) or not kept
        service.fallback(lambda x: given.append(x) or -x)
        expected = np.where(np.isin(np.arange(6), [2, 4])[:, None], -x, 2 * x)
        np.testing.assert_array_equal(service(x), expected)
        np.testing.assert_array_equal(given[0], x[[2, 4]])

    x, y = tensor("x", "float64", 2), tensor("y", "float64", 2) | {"max": 1e6}
    table = {"method": "model", "limit": 0.5}
    doubtful = python("doubtful", [x], [y], uncertainty=table, cache_rows=100)
    counters = couple(world, {"doubtful": doubtful}, simulate)
    if world.role == INFERENCE:
        assert rows_of(counters) == (1 + 6 + 4 + 6 + 4 + 6, 4 + 6 + 4 + 6)


@pytest.mark.roles(simulation=2, inference=1)
def test_a_bad_request_fails_alone_beside_one_of_which_some_rows_are_kept(world):
    def simulate(session):
        service, comm = begin(session, "moody", np.zeros((1, 2))), session.comm
        x = np.zeros((3, 2))
        x[:, 1] = (1, 2, 3)
        if comm.rank == 0:
            np.testing.assert_array_equal(service(x[:2], timeout=LIMIT), 2 * x[:2])
        for turn in range(2):
            comm.Barrier()
            if comm.rank == 0:
                x[2, 1] = 10 + turn
                np.testing.assert_array_equal(service(x, timeout=LIMIT), 2 * x)
            else:
                with pytest.raises(ModelError, match="negative input"):
                    service(-x[:1] - 1, timeout=LIMIT)
        assert comm.allreduce(1) == 2

    moody = python("moody", [tensor("x", "float64", 2)], [tensor("y", "float64", 2)])
    counters = couple(
        world, {"moody": moody | {"cache_rows": 9, "max_delay_us": 1_000_000}}, simulate
    )
    if world.role == INFERENCE:
        assert counters["errors"] == 2
        assert rows_of(counters) == (2 + 2 + 3 + 3, 2 + 2)


# ---- what is refused

STATE = "the model is random, or has a state"


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("settings", [{}, {"max_batch_rows": 1}, {"warmup": True, "rows": None}])
def test_a_model_with_a_state_is_refused(world, settings):
    def simulate(session):
        with pytest.raises(ModelError, match=r"service\.s\.cache_rows: ") as caught:
            session.service("s")
        assert caught.value.code == Code.EMODEL
        assert STATE in caught.value.text or "only independent rows are kept" in caught.value.text

    y = {"name": "y", "dtype": "int64", "shape": [-1]}
    table = python("Numbered", [tensor("x", "float64", 2)], [y], cache_rows=9, **settings)
    couple(world, {"s": table}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_a_model_that_asks_who_its_clients_are_is_refused(world):
    def simulate(session):
        with pytest.raises(ModelError, match="asks who its clients are; remove it"):
            session.service("s")

    x, y = tensor("x", "float64"), tensor("y", "float64")
    couple(world, {"s": python("Sequences", [x], [y], cache_rows=9)}, simulate)
