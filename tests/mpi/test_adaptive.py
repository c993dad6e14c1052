"""Pools whose ranks hold some of their services at a time, and move as the load does."""

import logging
import re
import time

import numpy as np
import pytest
from mpi.coupling import FLYING, INFERENCE, NAP, couple, keep_busy, python, tensor
from mpi.models import WEIGHTS_MISSING
from mpi.test_held import asked, countdown

from mpiserve import ModelError

SETTLE, COUNT = 0.7, 0.4  # seconds
FACTORS = {"a": 3.0, "b": 5.0, "c": 7.0}
MOVES = re.compile(r"moves of the pool: (\d+)")  # in the log of the rank that decides
WORLD = pytest.mark.roles(simulation=2, inference=3)


def paced(test, name, **options):
    x, y = tensor("x", "float32", 1), tensor("y", "float32", 1)
    options = {"test": test, "factor": FACTORS[name], **options}
    return python("Paced", [x], [y], max_batch_rows=1, options=options)


def pool(services, ranks, **settings):
    table = {"ranks": ranks, "services": list(services), "loaded": 1}
    return {"adaptive": table | {"interval_s": 0.05, "least_s": 0.1} | settings}


def rates(session, *names, settle=SETTLE, count=COUNT):
    factors = {name: FACTORS[name] for name in names}
    return keep_busy(session, factors, settle=settle, count=count)


def soon(session, name, least):
    """The rate of a service alone; again, if something else took the cores meanwhile."""
    for _ in range(5):
        (rate,) = rates(session, name)
        if rate >= least:
            break
    return rate


@WORLD
@pytest.mark.timeout(60)
def test_a_rank_moves_to_the_service_that_is_asked_and_back(world, caplog):
    """Sleeping models of one request a batch: cores are no limit, ranks are."""

    def simulate(session):
        _, one = rates(session, "a", "b", settle=0.2)
        two = soon(session, "b", 1.6 * one)
        back = soon(session, "a", 1.6 * one)
        said = f"b: {one:.0f} requests/s on one rank, {two:.0f} alone; a: {back:.0f} alone"
        print(said)
        assert two >= 1.6 * one, said
        assert back >= 1.6 * one, said

    with caplog.at_level(logging.INFO, "mpiserve"):
        services = {name: paced("back", name) for name in "ab"}
        counters = couple(world, services, simulate, pool=pool("ab", 3))
    if world.role == INFERENCE:
        assert counters["errors"] == 0
    if world.role == INFERENCE and MOVES.search(caplog.text):  # who decides
        moves = [r.getMessage() for r in caplog.records if r.getMessage().startswith("mov")]
        assert moves[0].startswith("moving pool rank ") and ": load a " in moves[0]
        assert moves[1].startswith("moved pool rank ")


@WORLD
@pytest.mark.takes_long
@pytest.mark.timeout(60)
def test_nothing_is_lost_while_ranks_move_to_and_fro(world, caplog):
    def simulate(session):
        draw = np.random.default_rng(session.comm.rank)
        for k in range(50):
            session.comm.Barrier()
            names = "ab"[k // 10 % 2] * 12 + "ab"
            requests = [(n, x, session.service(n).submit(x)) for n in names for x in [made(draw)]]
            requests[0][2].cancel()
            for name, x, request in requests[1:]:
                y = request.result(timeout=30)
                np.testing.assert_array_equal(y, np.float32(FACTORS[name]) * x)

    def made(draw):
        """Rows that ride in a slot, and rows that do not."""
        rows = int(draw.choice([1, 150]))
        return (0.001 + 0.001 * draw.random((rows, 1))).astype(np.float32)

    services = {name: paced("lost", name) | {"max_batch_rows": 150} for name in "ab"}
    settings = {"interval_s": 0.02, "least_s": 0.02, "hysteresis": 1.0}
    with caplog.at_level(logging.INFO, "mpiserve"):
        counters = couple(world, services, simulate, pool=pool("ab", 3, **settings))
    if world.role == INFERENCE:
        assert counters["errors"] == counters["cancelled"]
        assert not MOVES.search(caplog.text) or int(MOVES.search(caplog.text)[1]) >= 1


@WORLD
@pytest.mark.timeout(60)
def test_a_rank_that_cannot_load_goes_back_to_what_it_had(world, caplog):
    def simulate(session):
        with pytest.raises(ModelError, match=WEIGHTS_MISSING):
            session.service("c")
        one, _ = rates(session, "b", "a", settle=0.2)
        rates(session, "b", settle=0.6, count=0.1)
        assert soon(session, "a", 1.6 * one) >= 1.6 * one

    # b is loaded once by each rank, at start; c by none.
    services = {"a": paced("fail", "a"), "b": paced("fail", "b", times=1)}
    services["c"] = paced("fail", "c", times=0)
    for service in services.values():
        service["isolate"] = False  # a new process would not know how often it was loaded before
    with caplog.at_level(logging.INFO, "mpiserve"):
        counters = couple(world, services, simulate, pool=pool("abc", 3))
    if world.role == INFERENCE:
        assert counters["errors"] == 0
    if world.role == INFERENCE and MOVES.search(caplog.text):
        failed = [r.getMessage() for r in caplog.records if "could not move" in r.getMessage()]
        assert failed
        for text in failed:
            assert re.fullmatch("could not move pool rank [02] from a to b; it holds a", text)


@WORLD
@pytest.mark.timeout(60)
def test_a_version_is_remembered_where_the_service_is_suspended(world):
    def simulate(session):
        a = session.service("a")
        nap = np.full((1, 1), NAP, np.float32)
        rates(session, "b", settle=0.5, count=0.1)  # two ranks hold b now
        assert a(nap) == np.float32(3) * nap
        session.comm.Barrier()
        if session.comm.rank == 0:
            session.reload("a", version="3.5", timeout=30)
        session.comm.Barrier()
        begin, answers = time.monotonic(), []
        while session.comm.allreduce(time.monotonic() - begin < 0.6):  # and two hold a
            requests = [a.submit(nap) for _ in range(2 * FLYING)]
            answers += [request.result(timeout=30) for request in requests]
        assert all(answer == np.float32(3.5) * nap for answer in answers)

    versioned = {"version": "3", "reload": "in-place"}
    services = {"a": paced("reload", "a", factor="{version}") | versioned}
    services["b"] = paced("reload", "b")
    counters = couple(world, services, simulate, pool=pool("ab", 3))
    if world.role == INFERENCE:
        assert counters["errors"] == 0


@WORLD
@pytest.mark.timeout(60)
def test_requests_that_are_held_are_answered_before_a_rank_moves(world, caplog):
    def simulate(session):
        a, x = session.service("countdown"), asked(600, 3)  # steps of half a millisecond or more
        held = a.submit(x)
        rates(session, "b", settle=0.0, count=0.5)
        np.testing.assert_array_equal(held.result(timeout=30).y, 2 * x)
        x = asked(2, 100)
        end = time.monotonic() + 3  # the rank that moves starts a process for its model
        while time.monotonic() < end:
            np.testing.assert_array_equal(a(x).y, 2 * x)
            time.sleep(0.01)

    services = countdown() | {"b": paced("held", "b")}
    table = pool(services, 3, interval_s=0.02, hysteresis=1.0)
    with caplog.at_level(logging.INFO, "mpiserve"):
        counters = couple(world, services, simulate, pool=table)
    if world.role == INFERENCE:
        assert counters["errors"] == 0
        assert not MOVES.search(caplog.text) or int(MOVES.search(caplog.text)[1]) >= 1
