"""`mpiserve.futures`: an executor over a service that the test answers for."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait

import pytest

from mpiserve.errors import ArgumentError, Code, Error
from mpiserve.futures import ServiceExecutor

LIMIT = 30  # seconds that nothing here takes


class Service:
    """A service whose requests end when the test says so: with 2 x, unless x is an exception."""

    def __init__(self, holds=True):
        self.begun, self.options = [], []
        self._holds = holds
        self._changed = threading.Condition()

    def check_threads(self):
        pass

    def submit(self, x, **options):
        if isinstance(x, TypeError):
            raise x
        with self._changed:
            self.begun.append((x, Future()))
            self.options.append(options)
            self._changed.notify_all()
            if not self._holds:
                self.end(-1)
            return self.begun[-1][1]

    def end(self, index):
        x, request = self.begun[index]
        if isinstance(x, BaseException):
            request.set_exception(x)
        else:
            request.set_result(2 * x)

    def end_all(self):
        """End those that are under way, and from now on each at once."""
        with self._changed:
            self._holds = False
            for index, (_, request) in enumerate(self.begun):
                if not request.done():
                    self.end(index)

    def wait_begun(self, number):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= number, LIMIT)


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def quick():
    return Service(holds=False)


def threads():
    return [one for one in threading.enumerate() if one.name == "mpiserve-executor"]


def test_at_most_so_many_requests_are_under_way_in_order(service):
    with ServiceExecutor(service, in_flight=3) as executor:
        futures = [executor.submit(i, priority=i) for i in range(7)]
        for ended in range(7):
            service.wait_begun(min(7, 3 + ended))
            assert len(service.begun) == min(7, 3 + ended)
            assert sum(future.running() for future in futures) == min(3, 7 - ended)
            service.end(ended)
            assert futures[ended].result(LIMIT) == 2 * ended
    assert [x for x, _ in service.begun] == list(range(7))
    assert service.options == [{"priority": i} for i in range(7)]


def test_errors_are_those_of_the_futures(quick):
    with ServiceExecutor(quick) as executor:
        failed, refused = executor.submit(Error(Code.EMODEL, "no")), executor.submit(TypeError("x"))
        assert failed.exception(LIMIT).code == Code.EMODEL
        with pytest.raises(TypeError):
            refused.result(LIMIT)
        assert executor.submit(4).result(LIMIT) == 8


def test_a_future_that_waits_can_be_cancelled_and_one_under_way_cannot(service):
    with ServiceExecutor(service, in_flight=1) as executor:
        first, second, third = (executor.submit(i) for i in range(3))
        service.wait_begun(1)
        assert not first.cancel() and second.cancel()
        service.end(0)
        service.wait_begun(2)
        service.end(1)
        assert third.result(LIMIT) == 4 and second.cancelled()


def test_shutdown_returns_after_the_last_future_and_its_callbacks(service):
    executor = ServiceExecutor(service, in_flight=2)
    called = []
    futures = [executor.submit(i) for i in range(9)]
    for future in futures:
        future.add_done_callback(called.append)
    with ThreadPoolExecutor(1) as pool:
        down = pool.submit(executor.shutdown)
        for i in range(9):
            service.wait_begun(i + 1)
            assert not down.done()
            service.end(i)
        down.result(LIMIT)
        assert called == futures and [future.result(0) for future in futures] == [
            2 * i for i in range(9)
        ]
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(1)


def test_shutdown_wakes_those_who_wait_for_what_it_cancels(service):
    executor = ServiceExecutor(service, in_flight=1)
    under_way, *others = (executor.submit(i) for i in range(5))
    service.wait_begun(1)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(wait, others), pool.submit(lambda: set(as_completed(others)))]
        while not all(one.running() for one in waiting):
            pass
        executor.shutdown(wait=False, cancel_futures=True)
        assert waiting[0].result(LIMIT).done == waiting[1].result(LIMIT) == set(others)
    assert all(future.cancelled() for future in others) and not under_way.done()
    service.end(0)
    executor.shutdown()
    assert under_way.result(0) == 0 and len(service.begun) == 1


def test_callbacks_submit_and_what_they_raise_ends_nothing(quick):
    ended = threading.Event()

    def again(future):
        if future.result() < 200:
            executor.submit(future.result() // 2 + 1).add_done_callback(again)
        else:
            ended.set()
        raise asyncio.CancelledError  # a BaseException, as of a task that was cancelled

    with ServiceExecutor(quick) as executor:
        executor.submit(1).add_done_callback(again)
        assert ended.wait(LIMIT)
    assert len(quick.begun) == 100


def test_map_gives_results_in_order(service):
    with ServiceExecutor(service) as executor:
        results = executor.map([3, 1, 2], deadline=5)
        service.wait_begun(3)
        for i in (2, 1, 0):
            service.end(i)
        assert list(results) == [6, 2, 4] and service.options == [{"deadline": 5}] * 3


def test_map_submits_no_more_than_the_buffer_holds(quick):
    read = []
    cases = (read.append(i) or i for i in range(100))
    with ServiceExecutor(quick) as executor:
        results = executor.map(cases, buffersize=4)
        assert len(read) == 4
        assert [next(results), next(results)] == [0, 2] and len(read) == 6
        assert list(results) == [2 * i for i in range(2, 100)]


def test_map_ends_at_its_time_and_at_an_error_and_cancels_the_others(service):
    with ServiceExecutor(service, in_flight=1) as executor:
        late = executor.map([1, 2], timeout=0.01)
        service.wait_begun(1)
        with pytest.raises(TimeoutError):
            next(late)
        bad = executor.map([Error(Code.EMODEL, "no"), 5, 6])
        service.end(0)
        service.wait_begun(2)
        service.end(1)
        with pytest.raises(Error, match="no"):
            next(bad)
        service.end_all()
    assert 2 not in (begun := [x for x, _ in service.begun]) and 6 not in begun


def test_a_loop_has_it_as_executor(quick):
    async def ask(executor):
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, i) for i in range(20)))

    with ServiceExecutor(quick) as executor:
        assert asyncio.run(ask(executor)) == [2 * i for i in range(20)]


def test_one_that_nobody_holds_ends(service):
    before = len(threads())
    executor = ServiceExecutor(service)
    future, gone = executor.submit(3), weakref.ref(executor)
    (made,) = threads()[before:]
    service.wait_begun(1)
    del executor
    gc.collect()
    assert gone() is None
    service.end(0)
    made.join(LIMIT)
    assert not made.is_alive() and future.result(0) == 6


def test_a_forked_child_is_refused(service):
    executor = ServiceExecutor(service)
    child = os.fork()
    if not child:
        status = 1
        try:
            executor.submit(1)
        except Error as error:
            executor.shutdown()
            status = 0 if error.code == Code.ESTATE else 1
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    executor.shutdown()


@pytest.mark.parametrize("in_flight", [0, -1, 1.5, None])
def test_wrong_arguments(service, in_flight):
    with pytest.raises(ArgumentError, match="in_flight"):
        ServiceExecutor(service, in_flight=in_flight)
    with pytest.raises(ArgumentError, match=r"session\.service"):
        ServiceExecutor(object())
    with ServiceExecutor(service) as executor, pytest.raises(ArgumentError, match="buffersize"):
        executor.map([], buffersize=0)


END = """\
import sys
import threading
sys.path.insert(0, {folder!r})
from unit.test_futures import Service, ServiceExecutor

service = Service()
executor = ServiceExecutor(service, in_flight=1)
for i in range(3):
    executor.submit(i).add_done_callback(lambda f: print(f.result(), flush=True))

def end():
    for i in range(3):
        service.wait_begun(i + 1)
        service.end(i)

threading.Timer(0.2, end).start()
"""


def test_a_program_that_ends_waits_for_its_futures():
    from pathlib import Path

    text = END.format(folder=str(Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=2 * LIMIT, check=True
    )
    assert done.stdout.split() == ["0", "2", "4"]


def test_a_cancelled_future_has_the_error_of_futures(service):
    executor = ServiceExecutor(service, in_flight=1)
    _, second = executor.submit(1), executor.submit(2)
    service.wait_begun(1)
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        second.result(0)
    service.end(0)
    executor.shutdown()
