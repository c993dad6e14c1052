"""Another version of a model while clients ask for it: none lost, none by both, no hang."""

import time

import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, tensor
from mpi.models import WEIGHTS_MISSING

from mpiserve.errors import Code, ConfigError, Error, ModelError, NotFoundError, RequestTimeout

pytestmark = pytest.mark.every_mpi

CLIENTS, REPLICAS, REQUESTS = 3, 2, 5000
AT_ONCE = 4
WORLD = pytest.mark.roles(simulation=CLIENTS, inference=REPLICAS + 1)
LOADING = 0.3  # seconds that a version takes, as models.py says
LIMIT = 60


def versioned(**settings):
    outputs = [tensor("y", "float64", 3), tensor("by", "float64"), tensor("at", "float64")]
    table = {"options": {"version": "{version}"}, "version": "1", "warmup": [2], "max_delay_us": 0}
    return python("Versioned", [tensor("x", "float64", 3)], outputs, **table | settings)


def ask(service, n=AT_ONCE):
    """Ask for rows that ride in a slot, and for more; give (version, replica) of each answer."""
    asked = [numbers(40 if i == 2 else 1 + i, 3, start=i) for i in range(n)]
    answers = []
    for x, request in [(x, service.submit(x)) for x in asked]:
        y, by, at = request.result(timeout=LIMIT)
        np.testing.assert_array_equal(y, 3 * x)
        assert (by == by[0]).all()
        assert request.stats["generation"] == by[0], "a reply says which version made it"
        answers.append((by[0], at[0]))
    return answers


def version_of(service):
    return {version for version, _ in ask(service)}


def reload_while_asking(session, service):
    """One rank reloads; the others ask until they see it."""
    answers = ask(service)
    if session.comm.rank == 0:
        begin = time.monotonic()
        session.reload("model", version="2", timeout=LIMIT)
        assert time.monotonic() - begin > LOADING
        assert version_of(service) == {2}, "reload() had returned"
        return answers
    while answers[-1][0] == 1:
        answers += ask(service)
    assert len(answers) > 5 * AT_ONCE, "version 1 answered while 2 was loaded"
    return answers


@WORLD
@pytest.mark.timeout(90)
def test_five_thousand_requests_over_a_reload(world):
    def simulate(session):
        service, comm = session.service("model"), session.comm
        answers = reload_while_asking(session, service)
        while len(answers) < REQUESTS // CLIENTS:
            answers += ask(service)
        comm.Barrier()
        answers += ask(service)
        assert {version for version, _ in answers} == {1, 2}
        for replica in {replica for _, replica in answers}:
            versions = [version for version, at in answers if at == replica]
            assert versions == sorted(versions), "a replica that changed does not change back"
        assert {version for version, _ in answers[-AT_ONCE:]} == {2}
        assert comm.allreduce(len(answers)) >= REQUESTS
        assert version_of(session.service("other")) == {1}, "other services take no notice"

    services = {"model": versioned(replicas=REPLICAS), "other": versioned()}
    couple(world, services, simulate)


def check_fails(session, kind, match, *arguments, **named):
    with pytest.raises(kind, match=match) as caught:
        session.reload(*arguments, timeout=LIMIT, **named)
    return caught.value


@WORLD
@pytest.mark.timeout(60)
def test_a_reload_that_fails_leaves_the_version_before(world):
    def simulate(session):
        service, comm = session.service("model"), session.comm
        assert session.info()["services"][0]["version"] == "1"
        comm.Barrier()
        if comm.rank == 0:
            text = rf"'model' on rank \d: RuntimeError: {WEIGHTS_MISSING}.*version before goes on"
            check_fails(session, ModelError, text, "model", "missing")
            text = r"output 'y': expected float64 \[2, 3\], got float64 \[2, 6\]"
            check_fails(session, ModelError, text, "model", "wide")
            check_fails(session, ConfigError, r"a version is letters", "model", "../2")
            check_fails(session, ConfigError, r"'2' has no meaning", "state", "2")
            check_fails(session, NotFoundError, "'modal'", "modal", "2")
            check_fails(session, ValueError, "63 bytes", "model", 64 * "2")
            with pytest.raises(RequestTimeout):
                session.reload("model", "2", timeout=LOADING / 5)
            # Its slot is free again when the version was dropped that was loaded too late.
            assert version_of(service) == {1}
        comm.Barrier()
        assert version_of(service) == {1}
        check_state(session, comm)

    sums = python("Sequences", [tensor("x", "float64")], [tensor("sum", "float64")])
    couple(world, {"model": versioned(replicas=REPLICAS), "state": sums}, simulate)


def check_state(session, comm):
    """A model can keep a state for each client; the same version again begins anew."""
    state = session.service("state")
    mine = np.arange(1.0, 4.0) * (comm.rank + 1)
    for times in (1, 2):
        np.testing.assert_allclose(state(mine)[-1], mine.sum() * times)
        comm.Barrier()
    if comm.rank == 1:
        session.reload("state", timeout=LIMIT)
    comm.Barrier()
    np.testing.assert_allclose(state(mine)[-1], mine.sum())


@WORLD
@pytest.mark.timeout(60)
def test_one_version_at_a_time_in_memory(world):
    def simulate(session):
        service, comm = session.service("model"), session.comm
        comm.Barrier()
        if comm.rank == 0:
            session.reload("model", "2", timeout=LIMIT)
            assert version_of(service) == {2}
            check_fails(session, ModelError, WEIGHTS_MISSING, "model", "missing")
            assert version_of(service) == {2}, "the version before was loaded again"
        comm.Barrier()
        if comm.rank == 1:
            assert version_of(service) == {2}
        comm.Barrier()
        if comm.rank == 2:
            session.unload("model", timeout=LIMIT)
            with pytest.raises(ModelError, match=r"'model' has no model now: .* reload"):
                service(numbers(2, 3))
        if comm.rank == 0:
            session.reload("echo", timeout=LIMIT)
        x = numbers(3, 2)
        np.testing.assert_array_equal(session.service("echo")(x), x)

    echo = {"backend": "echo", "inputs": [tensor("x", "float64", 2)]}
    services = {"model": versioned(replicas=REPLICAS, reload="in-place"), "echo": echo}
    couple(world, services, simulate)


@WORLD
@pytest.mark.timeout(60)
def test_two_ranks_that_reload_at_once(world):
    def simulate(session):
        service, comm = session.service("model"), session.comm
        service(numbers(2, 3))
        comm.Barrier()
        ended = ""
        try:
            session.reload("model", str(2 + comm.rank), timeout=LIMIT)
        except Error as error:
            assert error.code == Code.ESTATE
            ended = error.text
        texts = comm.allgather(ended)
        assert all("is changing the version of this service" in text for text in texts if text)
        assert texts.count("") <= CLIENTS
        comm.Barrier()
        if comm.rank == 0:
            session.unload("model", timeout=LIMIT)
            with pytest.raises(ModelError, match=r"'model' has no model now: .* reload"):
                service(numbers(2, 3))
            session.reload("model", "7", timeout=LIMIT)
        comm.Barrier()
        assert service(numbers(2, 3)).by[0] == 7

    couple(world, {"model": versioned(replicas=REPLICAS), "other": versioned()}, simulate)
