"""Spare ranks, and services that start, stop and change the number of their replicas."""

import numpy as np
import pytest
from mpi.coupling import couple, python, scaling, tensor

from mpiserve.errors import ArgumentError, Error, ModelError, NotFoundError

ONE = np.ones((2, 4))
SPARE = {"spares": 1}


def states(session, name="scale"):
    return [state.state.replace("busy", "ready") for state in session.states(name)]


def answer(session, name="scale"):
    np.testing.assert_array_equal(session.service(name)(ONE), 2 * ONE + 1)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.roles(simulation=1, inference=2)
def test_a_spare_serves_while_it_is_wanted(world, warm):
    def simulate(session):
        service = session.service("scale")
        assert states(session) == ["ready", "launched"]
        for _ in range(30):  # the spare is passed over
            answer(session)
        session.scale("scale", 2, timeout=20)
        assert states(session) == ["ready", "ready"]
        requests = [service.submit(ONE) for _ in range(8)]
        for request in requests:
            np.testing.assert_array_equal(request.result(), 2 * ONE + 1)
        session.scale("scale", 1, timeout=20)
        assert states(session) == ["ready", "launched"]
        answer(session)
        with pytest.raises(ArgumentError, match="3 replicas; it has 1, and 1 spare ranks can"):
            session.scale("scale", 3)
        with pytest.raises(NotFoundError):
            session.start("none")

    partition = SPARE | {"warm_spares": warm}
    counters = couple(world, {"scale": scaling()}, simulate, partition=partition)
    if world.comm.rank == world.comm.size - 1:
        assert 0 < counters["requests"] <= 8


@pytest.mark.roles(simulation=2, inference=2)
def test_a_stopped_service_starts_again_for_all(world):
    def simulate(session):
        answer(session)
        session.comm.Barrier()
        if session.comm.rank == 0:
            session.stop("scale", timeout=20)
            assert states(session) == ["launched", "launched"]
        session.comm.Barrier()
        for _ in range(2):
            with pytest.raises(ModelError, match="'scale' was stopped, and serves nowhere"):
                answer(session)
        session.comm.Barrier()
        if session.comm.rank == 1:
            session.start("scale", timeout=20)
            assert states(session) == ["ready", "ready"]
        session.comm.Barrier()
        session.service("scale").wait_ready(20)
        for _ in range(10):
            answer(session)

    couple(world, {"scale": scaling(replicas=2)}, simulate)


@pytest.mark.roles(simulation=1, inference=3)
def test_a_spare_serves_one_service_or_one_pool_at_a_time(world):
    def simulate(session):
        session.scale("scale", 2, timeout=20)
        with pytest.raises(Error, match=r"'first': 1 more .* rank \d+: it serves 'scale'"):
            session.scale("first", 2, timeout=20)
        session.scale("scale", 1, timeout=20)
        session.scale("first", 2, timeout=20)
        session.scale("second", 2, timeout=20)
        assert states(session, "first") == states(session, "second") == ["ready", "ready"]
        for name in ("scale", "first", "second"):
            answer(session, name)

    services = {name: scaling() for name in ("first", "second", "scale")}
    pools = {"pair": {"services": ["first", "second"]}}
    couple(world, services, simulate, partition=SPARE, pool=pools)


@pytest.mark.roles(simulation=1, inference=2)
def test_a_spare_serves_the_version_that_others_serve(world):
    names = [tensor(name, "float64") for name in ("y", "version", "process")]
    table = python("Versioned", [tensor("x", "float64")], names, version="1")

    def simulate(session):
        service = session.service("versions")
        assert service(np.ones(2)).version.tolist() == [1, 1]
        session.reload("versions", "5", timeout=20)
        session.scale("versions", 2, timeout=20)
        requests = [service.submit(np.ones(2)) for _ in range(8)]
        results = [request.result() for request in requests]
        assert {value for result in results for value in result.version} == {5}
        assert len({value for result in results for value in result.process}) == 2
        session.unload("versions", timeout=20)
        assert states(session, "versions") == ["launched", "launched"]
        session.start("versions", timeout=20)
        assert states(session, "versions") == ["ready", "launched"]
        # The unloaded replica passes on what comes to it.
        requests = [service.submit(np.ones(2)) for _ in range(8)]
        assert {value for request in requests for value in request.result().version} == {5}

    services = {"versions": table | {"options": {"version": "{version}"}}}
    couple(world, services, simulate, partition=SPARE)


@pytest.mark.roles(simulation=1, inference=2)
def test_a_model_that_a_spare_cannot_load_again(world):
    def simulate(session):
        with pytest.raises(ModelError, match=r"no rank is left that can; rank \d+: .*once"):
            session.scale("once", 2, timeout=20)
        assert states(session, "once") == ["ready", "launched"]
        answer(session, "once")

    x, y = tensor("x", "float64", 4), tensor("y", "float64", 4)
    couple(world, {"once": python("Once", [x], [y], isolate=False)}, simulate, partition=SPARE)
