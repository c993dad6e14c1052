"""Requests beside futures: coroutines, callbacks, `concurrent.futures`."""

from __future__ import annotations

import pytest
from coupling import RUN, write
from launch.test_one_process import SERVICE, ran

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
    def slow():
        made = futures.Future()
        made.set_running_or_notify_cancel()
        return made

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

    bad, late = twice.submit(x, deadline=-1), slow()
    done, rest = futures.wait([bad, late], 60, futures.FIRST_EXCEPTION)
    assert done == {bad} and rest == {late}
    late.set_result(None)

    def cancel(request):  # as a task that was cancelled does
        raise asyncio.CancelledError

    twice.submit(x).add_done_callback(cancel)
    ended.clear()
    twice.submit(x).add_done_callback(lambda r: ended.set())
    assert ended.wait(60)
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


EXECUTOR = (
    LOOP
    + """\
    from mpiserve.futures import ServiceExecutor

    with ServiceExecutor(twice, in_flight=5) as executor:
        answers = executor.map([x + i for i in range(100)])
        assert all((y == 2 * (x + i)).all() for i, y in enumerate(answers))
        out = np.empty_like(x)
        done = futures.wait([executor.submit(x, out=out), executor.submit({"x": x})], 60)
        assert len(done.done) == 2 and (out == 2 * x).all()
        bad, late = executor.submit(x.astype(str)), executor.submit(x, deadline=-1)
        print(type(bad.exception(60)).__name__, late.exception(60).code.name)
    print(raised(ServiceExecutor, session))
    late = ServiceExecutor(twice, in_flight=1)
    left = [late.submit(x) for _ in range(2000)]
print({str(error) for error in map(futures.Future.exception, left) if error})
late.shutdown()
"""
)


def test_an_executor_and_the_end_of_its_session(tmp_path):
    errors, wrong, closed = ran(tmp_path, EXECUTOR)
    assert errors == "DtypeError EDEADLINE" and wrong.startswith("ArgumentError: ")
    assert closed == "{'the session is closed'}"


SINGLE = """\
import mpi4py
mpi4py.rc.thread_level = "single"
"""


def test_waiting_needs_a_thread_that_mpi_allows(tmp_path):
    program = SINGLE + LOOP + "    print(raised(twice.submit(x).add_done_callback, print))\n"
    program += "    from mpiserve.futures import ServiceExecutor\n"
    program += "    print(raised(ServiceExecutor, twice))\n"
    for error in ran(tmp_path, program):
        assert "MPI was started for one: import mpiserve before mpi4py.MPI" in error


GATED = """\
import os
import time

def gated(x):
    while not os.path.exists("gate"):
        time.sleep(0.001)
    return 2 * x
"""
ENDS_MEANWHILE = (
    LOOP
    + """\
    class Short(float):
        def __format__(self, how):  # the text of the error is made when the time is over
            open("gate", "w").close()
            while not request.done():
                pass
            return super().__format__(how)

    request = twice.submit(x[:4])
    print(raised(request.exception, Short(0.01)))
    print(request.exception(), (request.result() == 2 * x[:4]).all())
"""
)


def test_a_time_out_is_no_error_of_a_request_that_ends_meanwhile(tmp_path):
    (tmp_path / "gated.py").write_text(GATED)
    config = SERVICE.replace("model:twice", "gated:gated")
    late, ended = ran(tmp_path, ENDS_MEANWHILE, config=config)
    assert late.startswith("RequestTimeout: ") and ended == "None True"


BUFFERS = (
    LOOP
    + """\
    async def many():
        for i in range(50):  # of at most 8 buffers at a time
            out = twice.empty_output(4)
            await twice.submit(x[:4] + i, out=out)
            assert (out == 2 * (x[:4] + i)).all()
            del out

    gc.disable()
    asyncio.run(many())
    print("kept none")
"""
)


def test_a_request_that_was_awaited_keeps_no_buffer(tmp_path):
    assert ran(tmp_path, "import gc\n" + BUFFERS) == ["kept none"]


BESIDE_MPI = """\
import asyncio, threading
import numpy as np
import mpiserve
from mpi4py import MPI

session = mpiserve.open()
twice, comm = session.service("twice"), session.comm
x, asked, ended = np.ones((2, 3), np.float32), [0], threading.Event()

def again(request):
    assert (request.result() == 2 * x).all()
    asked[0] += 1
    if asked[0] < 300:
        twice.submit(x).add_done_callback(again)
    else:
        ended.set()

try:
    twice.submit(x).add_done_callback(again)
except mpiserve.Error as error:
    print(error.code.name, error)
    ended.set()
while not comm.allreduce(ended.is_set(), MPI.LAND):
    comm.sendrecv(x, 1 - comm.rank, source=1 - comm.rank)
if asked[0]:
    print("answered", asked[0])
session.close()
"""


EXECUTOR_BESIDE_MPI = """\
import threading
import numpy as np
import mpiserve
from mpi4py import MPI
from mpiserve.futures import ServiceExecutor

session = mpiserve.open()
comm, x, ended = session.comm, np.ones((2, 3), np.float32), threading.Event()

try:
    executor = ServiceExecutor(session.service("twice"), in_flight=4)
    futures = [executor.submit(x + i) for i in range(300)]
    futures[-1].add_done_callback(lambda future: ended.set())
except mpiserve.Error as error:
    executor = None
    print(error.code.name, error)
    ended.set()
while not comm.allreduce(ended.is_set(), MPI.LAND):
    comm.sendrecv(x, 1 - comm.rank, source=1 - comm.rank)
if executor:
    assert all((future.result() == 2 * (x + i)).all() for i, future in enumerate(futures))
    print("answered", len(futures))
session.close()
"""


@pytest.mark.parametrize("program", [BESIDE_MPI, EXECUTOR_BESIDE_MPI])
@pytest.mark.parametrize("level", ["", "MPI_THREAD_MULTIPLE"])
def test_callbacks_beside_calls_of_mpi_need_mpi_for_several_threads(
    mpiexec, tmp_path, level, program
):
    write(tmp_path, program, SERVICE)
    levels = {"MPIR_CVAR_DEFAULT_THREAD_LEVEL": level} if level else {}
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env=levels)
    assert done.returncode == 0, done.stderr
    expected = "answered 300" if level else "ETHREAD"
    assert done.stdout.count(expected) == 2, done.stdout
