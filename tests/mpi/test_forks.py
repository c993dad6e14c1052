"""Forked children: the session is the parent's, and a child can do nothing to it."""

import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from mpi.coupling import couple, numbers, scaling

from mpiserve import Code, Error

pytestmark = pytest.mark.roles(simulation=2, inference=1)


def in_child(act):
    """Call in a child; its status is the code of the error that it gets, or 100."""
    pid = os.fork()
    if not pid:
        status = 100
        try:
            act()
        except Error as error:
            status = -error.code if "forked" in error.text else 101
        finally:
            os._exit(status)
    return -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_every_call_of_a_child_is_an_error_and_the_parent_goes_on(world):
    def simulate(session):
        service = session.service("scale")
        x, buffer = numbers(3, 4), service.empty_input(8)
        ended, pending = service.submit(x), service.submit(x)
        ended.result()
        for act in (
            lambda: service(x),
            lambda: service.submit(x),
            lambda: pending.result(),
            lambda: pending.done(),
            lambda: pending.cancel(),
            lambda: service.empty_input(4),
            lambda: service.empty_output(8),
            lambda: session.service("scale"),
            lambda: session.services,
            lambda: session.reload("scale"),
            lambda: session.unload("scale"),
            lambda: session.fail("text"),
            lambda: session.info(),
            lambda: session.close(),
            lambda: type(session._lib)(world.comm, "simulation"),
        ):
            assert in_child(act) == Code.ESTATE
        assert in_child(ended.result) == -100, "what was known before the fork is"
        assert in_child(lambda: session.abandon("text")) == -100, "and says nothing to others"
        np.testing.assert_array_equal(pending.result(), 2 * x + 1)
        buffer[:3] = x
        np.testing.assert_array_equal(service(buffer[:3]), 2 * x + 1)

    couple(world, {"scale": scaling()}, simulate)


def test_what_a_child_lets_go_stays_with_the_parent(world):
    def simulate(session):
        x = numbers(3, 4)
        service = session.service("scale")
        held = [service.submit(x), service.empty_input(8)]
        for _ in range(2):
            assert in_child(held.clear) == -100
        request, buffer = held
        np.testing.assert_array_equal(request.result(), 2 * x + 1)
        others = [service.empty_input(8) for _ in range(7)]  # in all 8, if none was given back
        buffer[:3], others[-1][:3] = x, x + 1
        np.testing.assert_array_equal(service(buffer[:3]), 2 * x + 1)

    couple(world, {"scale": scaling()}, simulate)


def test_a_pool_of_processes_beside_the_session(world):
    def simulate(session):
        service = session.service("scale")

        def ask(k):
            try:
                return service(np.full((1, 4), k, float))
            except Error as error:
                return error.code

        context = multiprocessing.get_context("fork")
        # multiprocessing pickles what it calls by name.
        globals()["_ask"] = ask
        with context.Pool(2) as pool:
            assert pool.map(_call, range(6)) == [Code.ESTATE] * 6
        assert all((ask(k) == 2 * k + 1).all() for k in range(6))
        # Programs, with and without code in the child before them.
        for options in ({}, {"preexec_fn": list}, {"close_fds": False}):
            command = [sys.executable, "-c", "print('here')"]
            assert subprocess.run(command, capture_output=True, **options).stdout == b"here\n"
        child = context.Process(target=signal.pause)
        child.start()
        child.terminate()
        child.join()
        assert all((ask(k) == 2 * k + 1).all() for k in range(6))

    couple(world, {"scale": scaling()}, simulate)


def _call(k):
    return globals()["_ask"](k)
