"""Requests that are answered one by one, after their batch: held at the head by tickets."""

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, numbers, scaling, tensor

from mpiserve.errors import ModelError, PeerError, RequestTimeout

ROWS = [1, 100]  # in the slot, and in leased rows
END = np.inf


def countdown(**settings):
    x, y, dropped = (tensor(name, "float64", 2) for name in ("x", "y", "dropped"))
    table = {"backend": "models:Countdown", "inputs": [x], "outputs": [y, dropped]}
    table |= {"warmup": False, "max_batch_rows": 128, "max_delay_us": 100}
    return {"countdown": table | settings}


def asked(value, rows):
    x = np.arange(2.0 * rows).reshape(rows, 2)
    x[0, 0] = value
    return x


def check_works(service):
    x = asked(2, 3)
    np.testing.assert_array_equal(service(x).y, 2 * x)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("rows", ROWS)
def test_a_short_request_overtakes_a_long_one(world, rows):
    def simulate(session):
        service = session.service("countdown")
        x = asked(END, rows)
        long = service.submit(x)
        # No more: the slot of the long one is in the way of the fifth request after it.
        short = asked(3, rows)
        np.testing.assert_array_equal(service(short).y, 2 * short)
        assert not long.done()
        service(asked(0, 1))
        np.testing.assert_array_equal(long.result().y, 2 * x)

    counters = couple(world, countdown(), simulate)
    if world.role == INFERENCE:
        assert (counters["requests"], counters["errors"]) == (3, 0)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("rows", ROWS)
def test_a_cancelled_request_is_dropped_at_the_server(world, rows):
    def simulate(session):
        service = session.service("countdown")
        for number in range(1, 3):
            long = service.submit(asked(END, rows))
            check_works(service)  # so it has begun
            long.cancel()
            for _ in range(1000):
                dropped = service(asked(1, 1)).dropped[0, 0]
                if dropped == number:
                    break
            assert dropped == number
        check_works(service)

    couple(world, countdown(), simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_a_bad_request_costs_itself_and_a_bad_step_all(world):
    def simulate(session):
        service = session.service("countdown")
        x = asked(END, 5)
        long = service.submit(x)
        with pytest.raises(ModelError, match="minus one"):
            service(asked(-1, 5))
        service(asked(0, 1))
        np.testing.assert_array_equal(long.result().y, 2 * x)
        long = service.submit(x)
        with pytest.raises(ModelError, match="minus two"):
            service(asked(-2, 5))
        with pytest.raises(ModelError, match="minus two"):
            long.result()
        check_works(service)

    couple(world, countdown(), simulate)


@pytest.mark.roles(simulation=3, inference=1)
def test_a_rank_that_fails_ends_what_is_held(world):
    def simulate(session):
        service = session.service("countdown")
        if session.comm.rank == 1:
            session.fail("the mesh is tangled")
            return
        with pytest.raises(PeerError, match=r"rank 1 .*the mesh is tangled"):
            service(asked(END, 1 + 99 * session.comm.rank // 2))

    couple(world, countdown(), simulate)


@pytest.mark.roles(simulation=3, inference=1)
def test_many_requests_end_once_each_with_their_own_rows(world):
    def simulate(session):
        service = session.service("countdown")
        random = np.random.default_rng(session.comm.rank)
        for _ in range(12):
            inputs = [asked(random.integers(1, 6), random.integers(1, 100)) for _ in range(6)]
            requests = [service.submit(x + 0) for x in inputs]
            requests[0].cancel()
            for x, request in list(zip(inputs, requests, strict=True))[1:]:
                np.testing.assert_array_equal(request.result().y, 2 * x)
        assert service.totals()["requests"] == 60

    couple(world, countdown(), simulate)


LONG = 600  # steps: more than a version takes to be loaded
LIMIT = 60


def version_of(request, x):
    """Check that one version answered a request; tell which."""
    y = request.result(timeout=LIMIT).y
    version = request.stats["generation"]
    np.testing.assert_array_equal(y, (1 + version) * x)
    return version


def begin(service, steps, rows=ROWS):
    """Ask for what ends after so many steps; when this returns, the model has it."""
    long = [(service.submit(x), x) for x in (asked(steps, n) for n in rows)]
    service(asked(1, 1))
    return long


def reload_when_others_hold(session, service):
    session.comm.Barrier()
    session.reload("countdown", "2", timeout=LIMIT)
    x = asked(2, 3)
    assert version_of(service.submit(x), x) == 2


def hold_until_reloaded(session, service):
    long, versions = begin(service, LONG), []
    session.comm.Barrier()
    while 2 not in versions:
        x = asked(2, 3)
        versions.append(version_of(service.submit(x), x))
    assert versions == sorted(versions)
    assert all(request.done() for request, _ in long), "version 1 is gone"
    assert [version_of(*one) for one in long] == [1, 1]


def ask_until_reloaded(session, other):
    session.comm.Barrier()
    everybody, count = session.comm.Ibarrier(), 0
    while not everybody.Test():
        x = numbers(3, 4, start=count)
        np.testing.assert_array_equal(other(x), 2 * x + 1)
        count += 1
    assert count > LONG // 20, "another service goes on while this one waits for its requests"


def begin_a_reload_that_waits(session, service, version):
    """It is out of time, and comes to pass when what is in the way has ended."""
    ((forever, _),) = begin(service, END, rows=[1])
    if version == 4:
        service(asked(1, 1))  # now the slot is taken that the order to change needs
    with pytest.raises(RequestTimeout):
        session.reload("countdown", str(version), timeout=1.0)
    return forever


def cancel_what_is_in_the_way(session, service, version):
    x, first = asked(2, 3), session.comm.rank == 0
    forever = begin_a_reload_that_waits(session, service, version) if first else None
    session.comm.Barrier()
    if version == 3 or first:
        after = service.submit(x)
        with pytest.raises(RequestTimeout):
            after.result(timeout=0.1)
    session.comm.Barrier()
    if forever:
        forever.cancel()
    if version == 3 or first:
        assert version_of(after, x) == version


def unload_what_is_busy(session, service):
    long = begin(service, LONG // 4)
    session.unload("countdown", timeout=LIMIT)
    assert {version_of(*one) for one in long} == {4}
    with pytest.raises(ModelError, match="'countdown' has no model now"):
        service(asked(1, 1))
    session.reload("countdown", "1", timeout=LIMIT)
    x = asked(2, 3)
    np.testing.assert_array_equal(service(x).y, 2 * x)


@pytest.mark.roles(simulation=3, inference=1)
def test_what_is_held_ends_on_the_version_that_took_it(world):
    def simulate(session):
        service, comm = session.service("countdown"), session.comm
        if comm.rank == 0:
            reload_when_others_hold(session, service)
        elif comm.rank == 1:
            hold_until_reloaded(session, service)
        else:
            ask_until_reloaded(session, session.service("scale"))
        if comm.rank < 2:
            comm.Ibarrier().Wait()
        for version in (3, 4):
            cancel_what_is_in_the_way(session, service, version)
        if comm.rank == 0:
            unload_what_is_busy(session, service)

    services = countdown(version="1", options={"version": "{version}"}) | {"scale": scaling()}
    couple(world, services, simulate, pool={"both": {"services": [*services]}})


@pytest.mark.roles(simulation=3, inference=1)
@pytest.mark.parametrize("reload", ["beside", "in-place"])
def test_a_rank_of_one_service_changes_what_works_in_steps(world, reload):
    def simulate(session):
        service, comm = session.service("countdown"), session.comm
        if comm.rank == 0:
            reload_when_others_hold(session, service)
        elif comm.rank == 1:
            hold_until_reloaded(session, service)
        else:
            comm.Barrier()

    settings = {"version": "1", "options": {"version": "{version}"}, "reload": reload}
    couple(world, countdown(**settings), simulate)
