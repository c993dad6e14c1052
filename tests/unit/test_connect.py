"""`mpiserve.connect`, beside a gateway whose rank is a thread."""

from __future__ import annotations

import numpy as np
import pytest
from gateway_rank import Rank

import mpiserve
from mpiserve.errors import Code, PeerError

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson", "urllib3"):
    pytest.importorskip(package)

X = np.arange(6, dtype=np.float32).reshape(2, 3)
NEVER = np.full((1, 3), -14, np.float32)


@pytest.fixture(scope="module")
def rank(tmp_path_factory):
    with Rank(tmp_path_factory.mktemp("gateway"), request_timeout_s=5.0) as made:
        yield made


@pytest.fixture
def session(rank):
    with mpiserve.connect(rank.endpoint.file) as made:
        yield made


def test_calls_and_requests(session):
    service = session.service("float32")
    assert service is session.service("float32")
    assert (service(X) == 2 * X).all() and (service(x=X) == 2 * X).all()
    assert (service({"x": X}) == 2 * X).all()
    out = np.zeros_like(X)
    assert service(X, out=out) is out and (out == 2 * X).all()
    requests = [service.submit(X + i, deadline=5, priority=i) for i in range(30)]
    for i, request in enumerate(requests):
        assert (request.result() == 2 * (X + i)).all() and request.done()
    service(X)[0] = 1  # an array of the caller's


def test_more_rows_than_a_batch_are_cut(rank, session):
    x = np.arange(600, dtype=np.int32).reshape(200, 3)
    rank.seen.clear()
    assert (session.service("int32")(x) == 2 * x).all()
    assert sum(rank.seen) == 200 and max(rank.seen) <= 64


def test_a_service_without_rows(session):
    assert (session.service("whole")(X[0]) == 2 * X[0]).all()


def test_errors_are_those_of_the_job(session):
    service = session.service("float32")
    with pytest.raises(mpiserve.ModelError, match="-13 is not a number"):
        service(np.full((1, 3), -13, np.float32))
    with pytest.raises(mpiserve.NotFoundError, match="no service 'none'"):
        session.service("none")
    with pytest.raises(mpiserve.Error, match="no weights"):
        session.service("lost")
    with pytest.raises(mpiserve.Error, match="complex64"):
        session.service("z")
    with pytest.raises(mpiserve.DeadlineError):
        service.submit(NEVER, deadline=0.05).result()
    with pytest.raises(mpiserve.RequestTimeout):
        service(NEVER, timeout=0.05)
    request = service.submit(NEVER)
    request.cancel()
    with pytest.raises(mpiserve.CancelledError):
        request.result()


@pytest.mark.parametrize(
    "arrays, named, code",
    [
        ([X.astype(np.float64)], {}, Code.EDTYPE),
        ([X[:, :2]], {}, Code.ESHAPE),
        ([X[0]], {}, Code.ESHAPE),
        ([X, X], {}, Code.ESHAPE),
        ([], {"y": X}, Code.ENAME),
        ([], {}, Code.ENAME),
        ([X], {"x": X}, Code.ENAME),
        ([X[:0]], {}, Code.EROWS),
    ],
)
def test_wrong_arguments_are_not_sent(rank, session, arrays, named, code):
    rank.seen.clear()
    with pytest.raises(mpiserve.Error) as error:
        session.service("float32")(*arrays, **named)
    assert error.value.code == code and not rank.seen


def test_who_is_not_let_in(rank, tmp_path, monkeypatch):
    monkeypatch.delenv("MPISERVE_TOKEN", raising=False)
    with pytest.raises(mpiserve.ArgumentError, match="token"):
        mpiserve.connect(rank.endpoint.url)
    monkeypatch.setenv("MPISERVE_TOKEN", rank.endpoint.token)
    mpiserve.connect(rank.endpoint.url).close()
    with pytest.raises(PeerError, match="no gateway answers"):
        mpiserve.connect(f"unix:{tmp_path}/none", "x")


def test_a_closed_session(rank):
    session = mpiserve.connect(rank.endpoint.file)
    service = session.service("float32")
    session.close()
    session.close()
    with pytest.raises(mpiserve.Error, match="closed"):
        service.submit(X)


def test_what_requests_hold_together_is_limited():
    from mpiserve.gateway.hub import Memory

    memory = Memory(100)
    with memory.hold(1000), pytest.raises(mpiserve.QueueFullError), memory.hold(1):
        pass
    with memory.hold(60), memory.hold(40):
        pass
