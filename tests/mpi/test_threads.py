"""Threads that use one session: they take turns, and none is kept out."""

import gc
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mpi.coupling import FOLDER, couple, numbers, python, scaling, tensor

from mpiserve import CancelledError, Code, Config, Error

THREADS = 4
ALONE = pytest.mark.roles(simulation=1, inference=1)
BESIDE = pytest.mark.roles(simulation=1, inference=2)


def gated(name):
    """Describe a service that answers 2 x + 1 when a file is there, and name the file."""
    gate = Path(os.environ["MPISERVE_TEST_DIR"], name)
    one = [tensor("x", "float64", 4)], [tensor("y", "float64", 4)]
    return python("gated", *one, options={"gate": str(gate)}), gate


@pytest.mark.roles(simulation=2, inference=1)
def test_threads_ask_at_once_and_each_gets_its_own(world):
    def simulate(session):
        service = session.service("scale")

        def ask(thread):
            for i in range(200):
                x = numbers((1, 7, 40, 300)[(thread + i) % 4], 4, start=1e4 * thread + i)
                request = service.submit(x)
                while i % 5 == 0 and not request.done():
                    pass
                np.testing.assert_array_equal(request.result(20.0), 2 * x + 1)
                assert request.stats["rows"] == len(x)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(ask, range(THREADS)))
        assert service.totals()["requests"] == 200 * THREADS

    couple(world, {"scale": scaling(max_batch_rows=1024)}, simulate)


@BESIDE
def test_a_thread_that_waits_keeps_nobody_out(world):
    slow, gate = gated("threads_wait")

    def simulate(session):
        x = numbers(3, 4)
        scale, pending = session.service("scale"), session.service("gated").submit(x)
        with ThreadPoolExecutor(THREADS) as pool:
            waiting = [pool.submit(pending.result) for _ in range(THREADS)]
            for i in range(50):
                np.testing.assert_array_equal(scale(x + i, timeout=20.0), 2 * (x + i) + 1)
            assert not any(one.done() for one in waiting)
            gate.touch()
            for one in waiting:
                assert one.result() is pending.result()

    couple(world, {"scale": scaling(), "gated": slow}, simulate)


@BESIDE
def test_what_threads_let_go_while_another_waits_is_given_back(world):
    slow, gate = gated("threads_drop")

    def simulate(session):
        x = numbers(3, 4)
        scale, pending = session.service("scale"), session.service("gated").submit(x)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(pending.result)
            for _ in range(6):
                # 8 buffers are all that a service has.
                buffers = [scale.empty_input(10 + i) for i in range(8)]
                for buffer in buffers:
                    scale.submit(buffer)  # and nobody waits for it
                circle = [scale.submit(x)]
                circle.append(circle)
                del buffers, buffer, circle
                gc.collect()
                np.testing.assert_array_equal(scale(x, timeout=20.0), 2 * x + 1)
            gate.touch()
            np.testing.assert_array_equal(waiting.result(), 2 * x + 1)

    couple(world, {"scale": scaling(), "gated": slow}, simulate)


@ALONE
def test_one_thread_cancels_what_another_waits_for(world):
    slow, gate = gated("threads_cancel")

    def simulate(session):
        service = session.service("gated")
        request = service.submit(numbers(3, 4))
        with ThreadPoolExecutor(THREADS) as pool:
            waiting = [pool.submit(request.result) for _ in range(THREADS)]
            service.submit(numbers(1, 4)).done()
            request.cancel()
            gate.touch()
            for one in waiting:
                with pytest.raises(CancelledError):
                    one.result()
        assert request.stats is None

    couple(world, {"gated": slow}, simulate)


@ALONE
def test_a_signal_reaches_a_thread_that_waits(world):
    slow, gate = gated("threads_signal")

    def simulate(session):
        service = session.service("gated")
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(service, numbers(2, 4))
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                service(numbers(3, 4))
            gate.touch()
            np.testing.assert_array_equal(other.result(), 2 * numbers(2, 4) + 1)

    couple(world, {"gated": slow}, simulate)


@ALONE
def test_a_thread_that_waits_learns_that_the_session_is_closed(world):
    from mpiserve import session

    slow, gate = gated("threads_close")
    config = Config.from_dict({"service": {"gated": slow}}, source="test", folder=FOLDER)
    inference = world.role == "inference"
    joined = session.join(world.comm, world.role, config if inference else None)
    if inference:
        joined.serve()
        joined.close()
        return
    request = joined.service("gated").submit(numbers(3, 4))

    def wait():
        with pytest.raises(Error, match="the session is closed") as caught:
            request.result()
        gate.touch()  # for which close waits
        return caught.value.code

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        while not waiting.running():
            pass
        joined.close()
        assert waiting.result() == Code.ESTATE
