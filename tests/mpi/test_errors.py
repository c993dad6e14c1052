"""Each failure: the right error at the right rank, no hang, and then work goes on."""

import time

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, numbers, python, scaling, tensor
from mpi.models import WEIGHTS_MISSING

import mpiserve
from mpiserve.errors import (
    ArgumentError,
    CancelledError,
    Code,
    DtypeError,
    Error,
    ModelError,
    NotFoundError,
    PeerError,
    RequestTimeout,
)

SLOW = 1.5  # seconds that a model computes, against time-outs of a tenth
SHORT = 0.1


def moody(**settings):
    return python("moody", [tensor("x", "float64")], [tensor("y", "float64")], **settings)


def check_works(service):
    np.testing.assert_array_equal(service(np.full(3, 0.001)), np.full(3, 0.002))


@pytest.mark.roles(simulation=1, inference=1)
def test_a_second_session_of_a_world_that_has_one(world):
    def simulate(session):
        # The inference rank serves: nobody would ever come.
        with pytest.raises(Error, match="these ranks have one at a time") as caught:
            mpiserve.open(world.comm)
        assert caught.value.code == Code.ESTATE
        assert session.service("scale")(numbers(1, 4)).shape == (1, 4)

    for _ in range(2):  # one after the other is fine
        couple(world, {"scale": scaling()}, simulate)


@pytest.mark.roles(simulation=2, inference=1)
@pytest.mark.parametrize("rows", [1, 100])
def test_a_model_that_raises(world, rows):
    def simulate(session):
        service = session.service("moody")
        if session.comm.rank == 0:
            with pytest.raises(ModelError, match="ValueError: negative input -3") as caught:
                service(np.full(rows, -3.0))
            assert caught.value.code == Code.EMODEL
            check_works(service)
        session.comm.Barrier()
        check_works(service)

    counters = couple(world, {"moody": moody()}, simulate)
    if world.role == INFERENCE:
        assert counters["errors"] == 1


WRONG = {
    "rank": (ArgumentError, Code.ESHAPE, [np.zeros(4)], {}),
    "width": (ArgumentError, Code.ESHAPE, [np.zeros((2, 5))], {}),
    "missing": (ArgumentError, Code.ESHAPE, [], {}),
    "more": (ArgumentError, Code.ESHAPE, [np.zeros((2, 4))] * 2, {}),
    "dtype": (DtypeError, Code.EDTYPE, [np.zeros((2, 4), np.float32)], {}),
    "unknown dtype": (DtypeError, Code.EDTYPE, [np.zeros((2, 4), np.complex128)], {}),
    "name": (ArgumentError, Code.ENAME, [], {"z": np.zeros((2, 4))}),
    "no rows": (ArgumentError, Code.EROWS, [np.zeros((0, 4))], {}),
}
NAMES_TENSOR = {"rank": "x", "width": "x", "dtype": "x", "name": "z"}


def counters(session):
    """All but one: over rma info itself reads the state of services."""
    return session.info()["counters"] | {"rma_operations": None}


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("what", WRONG)
def test_a_request_that_does_not_fit(world, what):
    kind, code, arrays, named = WRONG[what]

    def simulate(session):
        service = session.service("scale")
        x = numbers(2, 4)
        service(x)
        before = counters(session)
        with pytest.raises(kind) as caught:
            service(*arrays, **named)
        assert counters(session) == before, "it must not be sent"
        assert caught.value.code == code
        assert "'scale'" in caught.value.text
        assert f"'{NAMES_TENSOR.get(what, 'scale')}'" in caught.value.text
        np.testing.assert_array_equal(service(x), 2 * x + 1)

    couple(world, {"scale": scaling(max_batch_rows=64)}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_a_service_that_is_not_there(world):
    def simulate(session):
        with pytest.raises(NotFoundError, match=r"'shale'.*'scale'"):
            session.service("shale")

    couple(world, {"scale": scaling()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("rows", [1, 100])
def test_a_time_out(world, rows):
    def simulate(session):
        service = session.service("moody")
        begin = time.monotonic()
        with pytest.raises(RequestTimeout, match=r"'moody'.*rank \d+ within 0\.1 s"):
            service(np.full(rows, SLOW), timeout=SHORT)
        assert SHORT <= time.monotonic() - begin < SLOW
        check_works(service)

    couple(world, {"moody": moody()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_waiting_again_after_a_time_out(world):
    def simulate(session):
        request = session.service("moody").submit(np.full(2, SLOW))
        with pytest.raises(RequestTimeout):
            request.result(timeout=SHORT)
        assert not request.done()
        np.testing.assert_array_equal(request.result(), np.full(2, 2 * SLOW))

    couple(world, {"moody": moody()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("rows", [1, 100])
def test_cancel_does_not_wait_for_the_model(world, rows):
    def simulate(session):
        service = session.service("moody")
        # These get leases of their own: a submit waits for a request that has none yet.
        for request in [service.submit(np.full(rows, SLOW)) for _ in range(2)]:
            request.result()
        begin = time.monotonic()
        requests = [service.submit(np.full(rows, SLOW)) for _ in range(3)]
        for request in requests:
            request.cancel()
            assert request.done()
            with pytest.raises(CancelledError):
                request.result()
        assert time.monotonic() - begin < SLOW
        check_works(service)

    couple(world, {"moody": moody(max_batch_rows=128)}, simulate)


@pytest.mark.roles(simulation=1, inference=2)
def test_a_model_that_cannot_be_loaded(world):
    x, y = tensor("x", "float64"), tensor("y", "float64")

    def simulate(session):
        with pytest.raises(ModelError) as caught:
            session.service("broken")
        assert f"RuntimeError: {WEIGHTS_MISSING}" in caught.value.text
        assert "'broken'" in caught.value.text
        assert [service.name for service in session.services] == ["moody"]
        check_works(session.service("moody"))

    couple(world, {"broken": python("Broken", [x], [y]), "moody": moody()}, simulate)


def until_peer_error(service):
    with pytest.raises(PeerError, match=r"rank 1 .*the mesh is tangled") as caught:
        while True:
            service(np.full(2, 0.001))
    assert caught.value.code == Code.EPEER


@pytest.mark.roles(simulation=3, inference=2)
def test_a_simulation_rank_that_says_it_failed(world):
    def simulate(session):
        services = [session.service("one"), session.service("two")]
        if session.comm.rank == 1:
            services[0](np.full(2, 0.001))
            session.fail("the mesh is tangled")
            return
        for service in services:
            until_peer_error(service)

    couple(world, {"one": moody(), "two": moody()}, simulate)


@pytest.mark.roles(simulation=3, inference=1)
def test_a_simulation_rank_that_raises(world):
    def simulate(session):
        service = session.service("moody")
        if session.comm.rank == 1:
            raise RuntimeError("the mesh is tangled")
        until_peer_error(service)

    if world.comm.rank == 1:
        with pytest.raises(RuntimeError, match="the mesh is tangled"):
            couple(world, {"moody": moody()}, simulate)
    else:
        couple(world, {"moody": moody()}, simulate)
