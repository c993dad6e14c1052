"""Requests beside futures: coroutines, callbacks, `concurrent.futures`."""

from __future__ import annotations

import pytest
from launch.test_one_process import ran

pytestmark = pytest.mark.takes_long

LOOP = """\
import asyncio
import concurrent.futures as futures
import threading

with mpiserve.local("c.toml") as session:
    twice = session.service("twice")
"""

COROUTINES = (
    LOOP
    + """\
    async def one(i):
        request = twice.submit(x + i)
        assert (await request == 2 * (x + i)).all()
        return request.result()[0, 0] == 2 * i and await request is request.result()

    async def many():
        ticks = asyncio.create_task(tick())
        right = await asyncio.gather(*map(one, range(100)))
        assert len(right) == 100 and all(right)
        ticks.cancel()
        bad = twice.submit(x, deadline=-1)
        try:
            await bad
        except mpiserve.DeadlineError:
            print("deadline", bad.cancelled(), type(bad.exception()).__name__)
        waits = asyncio.create_task(awaited(late := twice.submit(x)))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.wait([waits])
        print(waits.cancelled(), late.cancelled(), late)

    async def awaited(request):
        return await request

    async def tick():  # the loop goes on meanwhile
        while True:
            await asyncio.sleep(0)

    asyncio.run(many())
"""
)


def test_a_hundred_coroutines_wait_for_requests(tmp_path):
    deadline, cancelled = ran(tmp_path, COROUTINES)
    assert deadline == "deadline False DeadlineError"
    text = "<request to 'twice', ECANCELLED: the request was cancelled>"
    assert cancelled == f"True True {text}"


FUTURES = (
    LOOP
    + """\
    requests = [twice.submit(x + i) for i in range(20)]
    with futures.ThreadPoolExecutor(1) as pool:
        mixed = [*requests, pool.submit(int, 5)]
        done, late = futures.wait(mixed, timeout=60)
        assert done == set(mixed) and not late
        assert set(futures.as_completed(mixed)) == set(mixed)
    first, late = futures.wait([twice.submit(x), twice.submit(x)], 60, futures.FIRST_COMPLETED)
    assert first and len(first) + len(late) == 2
    assert all(r.exception() is None and (r.result() == 2 * (x + i)).all()
               for i, r in enumerate(requests))
    print(requests[0].stats["source"], repr(requests[0]).split(" rows")[0])

    called, ended = [], threading.Event()
    request = twice.submit(x)
    request.add_done_callback(lambda r: called.append((1, r is request)))
    request.add_done_callback(lambda r: 1 / 0)
    request.add_done_callback(lambda r: called.append((2, threading.current_thread().name)))
    request.add_done_callback(lambda r: ended.set())
    assert ended.wait(60)
    request.add_done_callback(lambda r: called.append((3, threading.current_thread().name)))
    print(called)

    ended.clear()
    twice.submit(x).add_done_callback(lambda r: ended.set())  # held by nobody else
    assert ended.wait(60) and session.info()["counters"]["errors"] == 0
    gone = twice.submit(x)
    gone.cancel()
    print(raised(gone.exception), gone.cancelled())
try:
    twice.submit(x)
except mpiserve.Error as error:
    print(error)
"""
)


def test_requests_are_like_futures(tmp_path):
    answered, called, cancelled, closed = ran(tmp_path, FUTURES)
    assert answered == "model <request to 'twice', answered by the model, 10"
    assert called == "[(1, True), (2, 'mpiserve-watch'), (3, 'MainThread')]"
    assert cancelled == "CancelledError: the request was cancelled True"
    assert closed == "the session is closed"


SINGLE = """\
import mpi4py
mpi4py.rc.thread_level = "single"
"""


def test_waiting_needs_a_thread_that_mpi_allows(tmp_path):
    program = SINGLE + LOOP + "    print(raised(twice.submit(x).add_done_callback, print))\n"
    (error,) = ran(tmp_path, program)
    assert "MPI was started for one: import mpiserve before mpi4py.MPI" in error
