"""Graphs of any size while their service changes: other versions, and ranks of a pool that move."""

import logging

import numpy as np
import pytest
from mpi import graphs
from mpi.coupling import INFERENCE, couple
from mpi.test_adaptive import MOVES, pool

from mpiserve.errors import ModelError

LIMIT = 30


def service(version, seconds=0.0):
    """Describe a service that sleeps for each graph, so that ranks are the limit, and not cores."""
    options = {"version": "{version}", "seconds": seconds}
    table = {"backend": "python", "options": options, "version": version}
    return graphs.service("Versioned", "float64", **table)


def check(given, request, version):
    """Compare an answer with that of a version for this graph alone."""
    x, edges, scale = given
    right = graphs.messages(x, edges, np.array([scale]), np.array([len(x)]))
    y, mean = request.result(timeout=LIMIT)
    np.testing.assert_allclose(y, version * right[0], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(mean, version * right[1][0], rtol=1e-13, atol=1e-13)


def ask(asked, random, names="a", at_once=4):
    """Send graphs to services; return the service, the graph and the request of each."""
    given = [(name, graphs.graph(random, np.float64)) for name in names for _ in range(at_once)]
    return [(name, one, asked.service(name).submit(*one)) for name, one in given]


def ask_for_versions(session, random):
    """Check some answers, each against the version that its statistics tell; return the last."""
    for _, given, request in ask(session, random):
        request.result(timeout=LIMIT)
        version = request.stats["generation"]
        check(given, request, version)
    return version


@pytest.mark.roles(simulation=3, inference=1)
@pytest.mark.timeout(60)
def test_a_reload_between_batches_of_graphs(world):
    def simulate(session):
        random, comm = np.random.default_rng(session.comm.rank), session.comm
        assert ask_for_versions(session, random) == 1
        comm.Barrier()
        if comm.rank == 0:
            with pytest.raises(ModelError, match="could not convert string"):
                session.reload("a", "none", timeout=LIMIT)
            session.reload("a", "2", timeout=LIMIT)
        else:
            while ask_for_versions(session, random) == 1:
                continue
        comm.Barrier()
        assert ask_for_versions(session, random) == 2

    counters = couple(world, {"a": service("1")}, simulate)
    if world.role == INFERENCE:
        assert counters["errors"] == 0 and counters["batches"] < counters["requests"]


@pytest.mark.roles(simulation=2, inference=3)
@pytest.mark.timeout(60)
@pytest.mark.takes_long
def test_ranks_of_a_pool_move_between_services_of_graphs(world, caplog):
    def simulate(session):
        random = np.random.default_rng(session.comm.rank)
        for step in range(20):
            session.comm.Barrier()
            busy = "ab"[step // 5 % 2]
            for name, given, request in ask(session, random, busy * 3 + "ab"):
                check(given, request, "ab".index(name) + 3)

    services = {"a": service("3", 0.002), "b": service("4", 0.002)}
    settings = {"interval_s": 0.02, "least_s": 0.02, "hysteresis": 1.0}
    with caplog.at_level(logging.INFO, "mpiserve"):
        counters = couple(world, services, simulate, pool=pool("ab", 3, **settings))
    if world.role == INFERENCE:
        assert counters["errors"] == 0
        assert not MOVES.search(caplog.text) or int(MOVES.search(caplog.text)[1]) >= 1
