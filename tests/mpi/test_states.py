"""The life of a service, as its clients see it."""

import logging
import time

import numpy as np
import pytest
from mpi.coupling import couple, python, tensor

from mpiserve.errors import ModelError, NotFoundError, RequestTimeout

TENSORS = [tensor("x", "float64")], [tensor("y", "float64")]


@pytest.mark.roles(simulation=1, inference=3)
def test_ready_busy_and_failed(world):
    begin = time.time()

    def simulate(session):
        service = session.service("moody")
        assert service.state == "ready"
        assert [service.state for service in session.services] == ["ready"]
        states = service.states()
        assert [state.replica for state in states] == [0, 1]
        for state in states:
            entered = state.entered
            assert state.rank in (1, 2, 3) and state.state == "ready"
            assert set(entered) == {"launched", "loading", "ready"}
            assert entered["launched"] < entered["loading"] < entered["ready"] < time.time() + 60
            assert entered["launched"] > begin - 60
        service.wait_ready(0)

        requests = [service.submit(np.array([1.0])) for _ in range(2)]
        while service.state == "ready":  # until both replicas are busy
            assert not all(request.done() for request in requests)
        assert service.state == "busy"
        service.wait_ready(0)
        for request in requests:
            request.result()
        while service.state == "busy":
            time.sleep(0.001)

        (broken,) = session.states("broken")
        assert (broken.state, broken.replica) == ("failed", 0)
        with pytest.raises(ModelError, match=r"could not be loaded: .*missing \(since 20"):
            session.service("broken")
        with pytest.raises(NotFoundError):
            session.states("none")

    services = {
        "moody": python("moody", *TENSORS, replicas=2),
        "broken": python("Broken", *TENSORS),
    }
    couple(world, services, simulate)


@pytest.mark.roles(simulation=2, inference=1)
def test_waiting_until_a_model_is_there_again(world, caplog):
    def simulate(session):
        service = session.service("versions")
        session.comm.Barrier()
        if session.comm.rank == 0:
            session.unload("versions")
            assert service.state == "launched"
            with pytest.raises(RequestTimeout, match="was not ready within"):
                service.wait_ready(0.2)
            session.comm.Barrier()
            service.wait_ready(20)
            assert service.state in ("ready", "busy")
        else:
            session.comm.Barrier()
            session.reload("versions")
        session.comm.Barrier()
        np.testing.assert_array_equal(service(np.ones(2))[0], [3, 3])

    names = [tensor(name, "float64") for name in ("y", "version", "process")]
    table = python("Versioned", [tensor("x", "float64")], names, version="1")
    with caplog.at_level(logging.INFO, "mpiserve"):
        couple(world, {"versions": table | {"options": {"version": "{version}"}}}, simulate)
    if world.role == "inference":
        said = [r.message for r in caplog.records if " s launched" in r.message]
        assert len(said) == 1
        assert ": ready, after " in said[0]
        assert any(": launched, after " in record.message for record in caplog.records)
