"""`mpiserve.connect`, beside a gateway whose rank is a thread."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, as_completed, wait

import numpy as np
import pytest
from gateway_rank import Rank

import mpiserve
from mpiserve.errors import Code, PeerError
from mpiserve.futures import ServiceExecutor

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson", "urllib3"):
    pytest.importorskip(package)

X = np.arange(6, dtype=np.float32).reshape(2, 3)
NEVER = np.full((1, 3), -14, np.float32)
HALF = NEVER.astype(np.float16)  # of a service whose slots no other test needs
LIMIT = 30  # seconds that nothing here takes


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


@pytest.fixture
def slow(rank, monkeypatch):
    """Four requests, of which one is under way, and their session."""
    monkeypatch.setattr(rank, "late_s", 3.0)
    with mpiserve.connect(rank.endpoint.file, connections=1) as session:
        yield session, [session.service("float16").submit(HALF) for _ in range(4)]


def is_closed(call):
    with pytest.raises(mpiserve.Error, match="the session is closed") as caught:
        call()
    return caught.value.code == Code.ESTATE


def test_close_wakes_who_waits_for_a_request(slow):
    session, requests = slow
    with ThreadPoolExecutor(9) as pool:
        waiting = [pool.submit(is_closed, request.result) for request in requests]
        waiting += [pool.submit(wait, [request]) for request in requests]
        several = pool.submit(lambda: set(as_completed(requests)))
        while not all(one.running() for one in [*waiting, several]):
            pass
        session.close()
        assert wait(waiting, LIMIT).not_done == set()
        assert all(one.result() for one in waiting)
        assert several.result(LIMIT) == set(requests)


def test_callbacks_use_the_session_while_it_closes(slow):
    session, requests = slow
    seen = []
    for request in requests:
        request.add_done_callback(
            lambda r: seen.append((r, is_closed(lambda: session.service("float16").submit(HALF))))
        )
    closing = threading.Thread(target=session.close, daemon=True)
    closing.start()
    closing.join(LIMIT)
    assert not closing.is_alive() and {r for r, right in seen if right} == set(requests)


def test_requests_are_like_futures(session):
    service = session.service("float32")
    good, bad, gone = service.submit(X), service.submit(-13 * np.ones_like(X)), Future()
    mixed = [good, bad, *(service.submit(X) for _ in range(20))]
    assert wait(mixed, LIMIT).done == set(mixed) == set(as_completed(mixed))
    assert good.exception() is None and isinstance(bad.exception(), mpiserve.ModelError)
    assert wait([gone, bad], LIMIT, FIRST_EXCEPTION).done == {bad}
    called = []
    good.add_done_callback(called.append)
    assert called == [good] and not good.cancel() and not good.cancelled()
    late = service.submit(NEVER)
    with pytest.raises(mpiserve.RequestTimeout):
        late.exception(0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, [late])
        while not waiting.running():
            pass
        assert late.cancel() and late.cancel() and late.cancelled() and late.done()
        assert waiting.result(LIMIT).done == {late}
    with pytest.raises(mpiserve.CancelledError):
        late.exception()


def test_coroutines_wait_for_requests(session):
    service = session.service("float32")

    async def ask(i):
        return (await service.submit(X + i) == 2 * (X + i)).all()

    async def awaited(request):
        await request

    async def all_of_them():
        assert all(await asyncio.gather(*map(ask, range(50))))
        with pytest.raises(mpiserve.ModelError):
            await service.submit(np.full((1, 3), -13, np.float32))
        task = asyncio.create_task(awaited(late := service.submit(NEVER)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() and late.cancelled()

    asyncio.run(all_of_them())


def test_outputs_are_written_at_the_end_or_not_at_all(rank, session):
    x = np.arange(600, dtype=np.int32).reshape(200, 3)
    out = np.zeros_like(x)
    request = session.service("int32").submit(x, out=out)
    assert wait([request], LIMIT).done and (out == 2 * x).all() and request.result() is out


def test_what_requests_hold_together_is_limited():
    from mpiserve.gateway.hub import Memory

    memory = Memory(100)
    with memory.hold(1000), pytest.raises(mpiserve.QueueFullError), memory.hold(1):
        pass
    with memory.hold(60), memory.hold(40):
        pass


def test_an_executor(session):
    with ServiceExecutor(session.service("float32"), in_flight=8) as executor:
        answers = executor.map([X + i for i in range(50)], buffersize=20)
        assert all((y == 2 * (X + i)).all() for i, y in enumerate(answers))
        with pytest.raises(mpiserve.DtypeError):
            executor.submit(X.astype(np.float64)).result(LIMIT)
        assert (executor.submit(x=X, deadline=LIMIT).result(LIMIT) == 2 * X).all()


def test_the_futures_of_an_executor_end_with_the_session(rank, monkeypatch):
    monkeypatch.setattr(rank, "late_s", 3.0)
    session = mpiserve.connect(rank.endpoint.file, connections=2)
    executor = ServiceExecutor(session.service("float16"), in_flight=4)
    futures = [executor.submit(HALF) for _ in range(12)]
    while not all(future.running() for future in futures[:4]):
        pass
    closing = threading.Thread(target=session.close, daemon=True)
    closing.start()
    assert wait(futures, LIMIT).not_done == set()
    closing.join(LIMIT)
    assert not closing.is_alive()
    assert all(is_closed(future.result) for future in futures)
    executor.shutdown()


def test_a_forked_child_is_refused_and_leaves_the_connections_alone(session):
    service = session.service("float32")
    child = os.fork()
    if not child:
        status = 1
        try:
            with session:
                service.submit(X)
        except mpiserve.Error as error:
            status = 0 if error.code == Code.ESTATE and "forked" in str(error) else 1
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert (service(X) == 2 * X).all()
