"""Which requests a local model answers, and which it does not."""

import time

import numpy as np
import pytest
from mpi.coupling import couple, python, tensor

from mpiserve.errors import ModelError

LIMIT = 60.0  # seconds
ONE = np.ones(3)
KILLED = "the local model failed: the model's process was killed by SIGKILL"


def local(model, **settings):
    x, y = tensor("x", "float64"), tensor("y", "float64")
    return python(model, [x], [y], fallback="local", **settings)


def ask(service, x):
    request = service.submit(x)
    return request.result(timeout=LIMIT), request.stats["source"]


def fail(service, x):
    with pytest.raises(ModelError) as caught:
        ask(service, x)
    return caught.value.text


def check_versions(session):
    """The model has failed by itself: no other is asked. It is unloaded: the local one is."""
    moody = session.service("moody")
    small = ONE / 1000
    text = fail(moody, -ONE)
    assert "negative" in text and "local model" not in text
    session.unload("moody", timeout=LIMIT)
    result, source = ask(moody, small)
    assert source == "local" and (result == 2 * small).all()
    text = fail(moody, -ONE)
    assert "no model now" in text and "the local model failed: ValueError: negative" in text
    session.reload("moody", timeout=LIMIT)
    assert ask(moody, small)[1] == "model"
    session.unload("moody", timeout=LIMIT)
    assert "it has the version of the start, and the service another" in fail(moody, small)


def check_given_up(session):
    """The replica is given up; in its turn the local model is."""
    deadly = session.service("deadly")
    assert "local model" not in fail(deadly, 13 * ONE)
    fail(deadly, 13 * ONE)  # now it is given up, as this request knows or not
    end = time.monotonic() + LIMIT
    while deadly.states()[0].state != "failed" and time.monotonic() < end:
        time.sleep(0.01)
    result, source = ask(deadly, ONE)
    assert source == "local" and (result == 2).all()
    texts = [fail(deadly, 13 * ONE) for _ in range(3)]
    assert KILLED in texts[0]
    assert "the local model failed: this replica is given up" in texts[2]


def check_steps(session):
    countdown = session.service("countdown")
    session.unload("countdown", timeout=LIMIT)
    for steps in (3, 1):
        result, source = ask(countdown, steps * ONE)
        assert source == "local" and (result.y == 2 * steps).all()
    assert "the local model failed: ValueError: minus one" in fail(countdown, -ONE)
    assert "the local model failed: ValueError: minus two" in fail(countdown, -2 * ONE)
    assert ask(countdown, ONE)[1] == "local"


@pytest.mark.takes_long
@pytest.mark.roles(simulation=1, inference=3)
@pytest.mark.timeout(100)
def test_a_local_model_answers_where_no_replica_has_a_model(world):
    def simulate(session):
        check_versions(session)
        check_given_up(session)
        check_steps(session)
        assert session.info()["counters"]["local_answers"] == 1 + 1 + 3

    x, y = tensor("x", "float64"), tensor("y", "float64")
    countdown = {
        "backend": "models:Countdown",
        "inputs": [x],
        "outputs": [y, tensor("n", "float64")],
    }
    services = {
        "moody": local("moody"),
        "deadly": local("deadly", restarts=1),
        "countdown": countdown | {"warmup": False, "fallback": "local"},
    }
    couple(world, services, simulate)
