"""Requests that follow time steps, in Python. Which answer each step gets: tests/c/mpi_pace.c."""

import gc
import signal
import threading

import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, scaling, tensor

from mpiserve.errors import ArgumentError, Code, DtypeError, Error, ModelError, RequestTimeout

SLOW = 1.0  # seconds of the model


def moody(**settings):
    return python("moody", [tensor("x", "float64")], [tensor("y", "float64")], **settings)


@pytest.mark.roles(simulation=2, inference=1)
def test_steps_get_answers_of_steps_before(world):
    def simulate(session):
        service = session.service("scale")
        pace = service.pace(every=2, lag=1)
        assert (pace.every, pace.lag, pace.extrapolate) == (2, 1, False)
        assert pace.age is None and pace.stats is None
        assert repr(pace) == "<pace of 'scale': every 2, lag 1, no answer yet>"
        x, out = numbers(100, 4), np.empty((100, 4))
        for n, of in enumerate((0, 0, 0, 2, 2, 4)):
            x[:] = numbers(100, 4, start=n)
            given = pace(x, out=out) if n % 2 else pace(x=x)
            assert (given is out) == bool(n % 2)
            np.testing.assert_array_equal(given, 2 * numbers(100, 4, start=of) + 1)
            assert pace.age == pace.stats["age"] == n - of
        assert pace.stats["rows"] == 100 and pace.stats["source"] == "model"
        assert pace.stats["extrapolated_rows"] == 0
        assert repr(pace) == "<pace of 'scale': every 2, lag 1, the last answer 1 steps old>"
        assert service.totals()["requests"] == 3 and service.totals()["rows"] == 300
        counters = session.info()["counters"]
        found = [counters[f"paced_{key}"] for key in ("steps", "age_sum", "age_max")]
        assert found == [6, 0 + 1 + 2 + 1 + 2 + 1, 2]
        pace.close()
        pace.close()
        with pytest.raises(Error, match="no such pace") as raised:
            pace(x)
        assert raised.value.code == Code.ESTATE

    couple(world, {"scale": scaling()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_a_step_does_not_wait_for_its_own_answer(world, tmp_path_factory):
    """The model answers when the call of the step that asked has returned."""
    folder = world.comm.bcast(str(tmp_path_factory.mktemp("gate")) if world.comm.rank == 0 else 0)
    kinds = [tensor("x", "float64")], [tensor("y", "float64")]
    service = python("after_call", *kinds, options={"folder": folder})

    def simulate(session):
        pace = session.service("late").pace(lag=1)
        for n in range(5):
            assert pace(np.full(3, float(n)), timeout=60)[0] == 2 * max(n - 1, 0)
            with open(f"{folder}/{n}", "w"):
                pass

    couple(world, {"late": service}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_errors_come_where_the_answer_is_needed(world):
    def simulate(session):
        service = session.service("moody")
        pace = service.pace(lag=2)
        for value in (0, 0, 0, -3, 0):
            pace(np.full(2, float(value)))
        with pytest.raises(ModelError, match="step 5 of a pace, asked 2 steps before: .*negative"):
            pace(np.zeros(2))
        with pytest.raises(DtypeError):
            pace(np.zeros(2, np.float32))
        with pytest.raises(ArgumentError):
            pace(np.zeros((2, 2)))
        pace(np.zeros(2))
        assert pace.age == 0

        service.fallback(lambda x: x + 1)
        pace.restart()
        for value in (0, -3, 0):
            pace(np.full(2, float(value)))
        np.testing.assert_array_equal(pace(np.zeros(2)), [-2, -2])
        assert (pace.stats["source"], pace.age) == ("fallback", 2)

    couple(world, {"moody": moody()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_time_outs_and_deadlines(world):
    def simulate(session):
        service = session.service("moody")
        slow, fast = np.full(2, SLOW), np.zeros(2)
        pace = service.pace()
        with pytest.raises(RequestTimeout, match="service 'moody': no answer within 0.05 s"):
            pace(slow, timeout=0.05)
        np.testing.assert_array_equal(pace(fast), fast)
        assert pace.age == 0
        service.fallback(lambda x: x + 1)
        np.testing.assert_array_equal(service.pace(deadline=0.05)(slow), slow + 1)
        for wrong in ({"every": 0}, {"lag": -1}, {"every": 1.5}, {"priority": 101}):
            with pytest.raises(ArgumentError):
                service.pace(**wrong)

    couple(world, {"moody": moody()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_lines_do_not_lead_from_one_version_to_another(world):
    names = ("y", "by", "at")
    outputs = [tensor(name, "float64", *([3] if name == "y" else [])) for name in names]
    table = {"options": {"version": "{version}"}, "version": "1", "max_delay_us": 0}

    def simulate(session):
        pace = session.service("model").pace(lag=1, extrapolate=True)
        given = []
        for n in range(6):
            if n == 3:
                session.reload("model", version="2", timeout=60)
            y = pace(np.full((1, 3), float(n * n))).y
            given.append((y[0, 0], pace.stats["generation"], pace.stats["extrapolated_rows"]))
        assert given == [(0, 1, 0), (0, 1, 0), (6, 1, 1), (21, 1, 1), (27, 2, 0), (69, 2, 1)]

    service = python("Versioned", [tensor("x", "float64", 3)], outputs, **table)
    couple(world, {"model": service}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_other_dimensions_are_not_answered_by_these(world):
    free = {"dtype": "float32", "shape": [-1, -1]}
    x, y = ({"name": name, "max_shape": [-1, 6], **free} for name in "xy")

    def simulate(session):
        pace, ages = session.service("grow").pace(lag=1), []
        for columns in (3, 3, 3, 5, 5, 2):
            x = np.full((2, 4), float(columns), np.float32)
            assert (pace(x, out=np.empty((2, columns), np.float32)) == columns).all()
            ages.append(pace.age)
        assert ages == [0, 1, 1, 0, 1, 0]
        with pytest.raises(ArgumentError, match=r"a pace needs out="):
            pace(x)
        with pytest.raises(ArgumentError, match="output 'y': the result has"):
            pace(x, out=np.empty((2, 4), np.float32))

    couple(world, {"grow": python("grow", [x], [y], max_batch_rows=8)}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_threads_and_paces_that_nobody_holds(world):
    def simulate(session):
        service = session.service("moody")
        pace, refused = service.pace(), []

        def second():
            while not refused:
                try:
                    pace.restart()
                except Error as error:
                    refused.append(error.code)

        thread = threading.Thread(target=second)
        thread.start()
        while not refused:
            pace(np.full(2, 0.02))
        thread.join()
        assert refused == [Code.ESTATE]
        lost = service.pace(lag=1)
        lost(np.zeros(2))
        lost(np.full(2, 0.05))
        del lost
        gc.collect()
        left = service.pace(lag=1)
        left(np.zeros(2))
        left(np.full(2, 0.05))
        return left

    couple(world, {"moody": moody()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_after_an_exception_of_a_signal_handler_a_step_is_answered_anew(world):
    """Or the answer of the step that it has ended would be taken for one of the next inputs."""

    def fail(number, frame):
        raise ValueError("from a handler")

    def simulate(session):
        pace = session.service("net").pace(lag=1)
        assert pace(np.zeros(1))[0] == 0
        before = signal.signal(signal.SIGALRM, fail)
        assert pace(np.full(1, SLOW))[0] == 0  # the model sleeps, and the next step waits for it
        signal.setitimer(signal.ITIMER_REAL, SLOW / 4)
        with pytest.raises(ValueError, match="from a handler"):
            pace(np.full(1, 0.125))
        signal.signal(signal.SIGALRM, before)
        assert pace.age is None
        assert pace(np.full(1, 0.25))[0] == 0.5

    couple(world, {"net": moody()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_a_pace_of_a_reproducible_service_runs_nothing_ahead(world):
    def simulate(session):
        service = session.service("scale")
        for wrong in ({"lag": 1}, {"every": 2}):
            with pytest.raises(ArgumentError, match="is reproducible: a pace of it has every = 1"):
                service.pace(**wrong)
        np.testing.assert_array_equal(service.pace()(numbers(3, 4)), 2 * numbers(3, 4) + 1)
        with pytest.raises(TypeError, match="makes a pace"):
            type(service.pace())()

    couple(world, {"scale": scaling(reproducible=True)}, simulate)
