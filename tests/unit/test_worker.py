"""The loop of an inference rank, over one model and over several."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from workers import FLOATS, FakeLib, batch, service_of, worker_of

from mpiserve import Backend, Steps
from mpiserve.config.partition import Assignment
from mpiserve.errors import Code, Error
from mpiserve.serving import loading
from mpiserve.serving.in_c import InC
from mpiserve.serving.reload import Change
from mpiserve.serving.worker import IDLE, Worker, refuse


@pytest.fixture
def make(monkeypatch):
    """A worker of one model, which a function is, and its session handle."""

    def build(function, *comes, **table):
        return worker_of(monkeypatch, function, *comes, **table)

    return build


def double(x):
    return 2 * x


def test_a_step_without_a_batch_goes_on(make):
    this, lib = make(double, None, batch())
    this.start()
    assert this.step()
    assert lib.answers == []
    assert this.step()
    assert len(lib.answers) == 1
    assert not this.step()


def test_the_watcher_sees_every_step(make):
    seen = []
    this, _ = make(double, None, batch(), None)
    this.serve(lambda: seen.append(1))
    assert len(seen) == 3


def test_echo_is_left_to_the_library():
    lib = FakeLib(None)
    Worker(lib, Assignment((service_of("e", backend="echo"),), 0, 0)).serve()
    [(service, engine)] = lib.engines
    x, y = np.full((3, 2), 7, np.float32), np.zeros((3, 2), np.float32)
    engine.run((x,), (y,))
    assert service == 0 and np.array_equal(x, y)
    assert lib.answers == [] and lib.timeouts == [IDLE, IDLE]


def test_echo_in_a_pool_is_asked_like_the_others():
    lib = FakeLib(batch(value=3.0, service=1))
    services = tuple(service_of(name, backend="echo") for name in "ab")
    Worker(lib, Assignment(services, 0, 0)).serve()
    assert lib.engines == [] and lib.answers[0][0][0, 0] == 3


def test_a_batch_on_which_the_engine_fails_runs_in_python(caplog):
    failed = batch(value=3.0)
    failed.failure = "an index is out of range"
    lib = FakeLib(failed, failed)
    Worker(lib, Assignment((service_of("e", backend="echo"),), 0, 0)).serve()
    assert [answer[0][0, 0] for answer in lib.answers] == [3, 3]
    assert [m for m in caplog.messages if "out of range" in m] == [
        "service e: its engine failed on a batch, which runs in Python now: "
        "an index is out of range"
    ]


def test_a_batch_that_the_library_cannot_hand_over_is_no_failure(caplog):
    """Those of clients on other nodes lie in the window of MPI, which no child maps."""
    child = SimpleNamespace(forward=lambda *_: "engine")
    backend = SimpleNamespace(native=None, forwards_to=child, to_compile="")
    service = service_of("e", backend="echo")
    model = SimpleNamespace(backend=backend, sole=True, watched=False, service=service, index=0)
    lib = SimpleNamespace(segments=lambda: [(3, 0, 1)], set_engine=lambda *_: None)
    in_c = InC(lib, model, 0)
    in_c.enter()
    in_c.warn("the batch is not in memory that the model's process maps")
    assert not caplog.messages


def test_the_end_is_one_line_of_what_was_done(make, caplog):
    caplog.set_level(logging.INFO, "mpiserve")
    this, _ = make(double)
    this.serve()
    assert caplog.messages[-1].endswith(
        "Model): 6 requests, 0 failed (2 rejected, 1 cancelled); 2 batches of 15.0 rows and 3.0 "
        "requests on average, closed by rows 0, census 0, delay 0"
    )


def test_a_rank_without_a_service_announces_why_and_stays():
    lib = FakeLib(None, None)
    refuse(lib, "s", Error(Code.ECONFIG, "too few ranks"))
    assert lib.published == {"name": "s", "error_code": -7, "error_text": "too few ranks"}
    assert lib.comes == []


# ---- several models ------------------------------------------------------------------------


class Times(Backend):
    """Multiplies by what its options say; no number cannot be loaded."""

    closed = []

    def load(self):
        self.factor = np.float32(float(self.service.options["factor"]))

    def run(self, inputs):
        return self.factor * inputs[0]

    def close(self):
        Times.closed.append(self.service.name)


@pytest.fixture
def pool(monkeypatch):
    """A worker of a model for each factor, and its session handle."""
    monkeypatch.setattr(Times, "closed", [])
    monkeypatch.setattr(loading.backends, "import_object", lambda *_: Times)

    def build(factors, *comes):
        table = {"backend": f"{__name__}:Times", "outputs": [{"name": "y", **FLOATS}]}
        services = [
            service_of(f"times_{factor}", options={"factor": factor}, **table) for factor in factors
        ]
        lib = FakeLib(*comes)
        return Worker(lib, Assignment(tuple(services), 0, 0)), lib

    return build


def values(answers):
    """The first number of each answer, or the code of an error."""
    return [answer[0] if isinstance(answer, tuple) else answer[0][0, 0] for answer in answers]


def test_each_batch_is_answered_by_the_model_of_its_service(pool, caplog):
    caplog.set_level(logging.INFO, "mpiserve")
    this, lib = pool("23", batch(service=1), batch(service=0), None, batch(service=1))
    this.serve()
    assert values(lib.answers) == [3, 2, 3]
    assert [told["name"] for told in lib.descriptions] == ["times_2", "times_3"]
    assert caplog.messages[-1].endswith("; batches: times_2 1, times_3 2")
    assert Times.closed == ["times_3", "times_2"]


def test_a_model_that_cannot_be_loaded_fails_its_own_service_only(pool):
    this, lib = pool(["2", "none"], batch())
    this.serve()
    assert this.failed and values(lib.answers) == [2]
    assert "error_code" not in lib.descriptions[0]
    assert lib.descriptions[1]["error_code"] == Code.EMODEL


def test_a_change_is_made_of_the_model_of_its_service(pool):
    unload = (1, Change.UNLOAD, 7, "")
    this, lib = pool("23", batch(service=1), unload, batch(service=1), batch(service=0))
    this.serve()
    assert lib.changed == [(1, Code.OK)]
    assert values(lib.answers) == [3, Code.EMODEL, 2]


# ---- a model that works in steps -----------------------------------------------------------


class One(Steps):
    """Has room for one request, and answers it in the second step."""

    def __init__(self):
        self.key = None

    @property
    def busy(self):
        return self.key is not None

    @property
    def room(self):
        return self.key is None

    def begin(self, key, client, inputs):
        assert self.room
        self.key, self.left, self.x = key, 2, inputs[0]

    def step(self):
        if not self.busy:
            return {}
        self.left -= 1
        done = {} if self.left else {self.key: self.x}
        self.key = self.key if self.left else None
        return done

    def drop(self, key):
        self.key = None


class InSteps(Backend):
    def load(self):
        self.steps = One() if self.service.name != "plain" else None

    def run(self, inputs):
        return inputs[0]


@pytest.fixture
def steps(monkeypatch):
    """A worker of a model without steps and of one with room for one request."""
    monkeypatch.setattr(loading.backends, "import_object", lambda *_: InSteps)

    def build(*comes):
        table = {"backend": f"{__name__}:InSteps", "outputs": [{"name": "y", **FLOATS}]}
        services = tuple(service_of(name, **table) for name in ("plain", "one"))
        lib = FakeLib(*comes)
        worker = Worker(lib, Assignment(services, 0, 0))
        worker.start()
        return worker, lib

    return build


def test_a_model_without_room_is_told_to_the_broker_once_and_others_go_on(steps):
    one, plain = batch(rows=1, service=1, value=5.0), batch(service=0, value=4.0)
    this, lib = steps(one, plain, None, None)
    this.step()
    assert (lib.rooms, lib.answers) == ([], [])
    this.step()
    assert lib.rooms == [(1, False)]
    assert values(lib.answers) == [4, 5]
    this.step()
    assert lib.rooms == [(1, False), (1, True)]
    this.step()
    assert len(lib.rooms) == 2


def test_nobody_waits_for_requests_while_a_model_is_busy(steps):
    this, lib = steps(batch(rows=1, service=1), None, None)
    while this.step():
        pass
    assert lib.timeouts == [IDLE, 0.0, IDLE, IDLE]


def test_a_change_waits_until_the_model_has_answered(steps):
    unload = (1, Change.UNLOAD, 7, "")
    this, lib = steps(batch(rows=1, service=1), unload, batch(service=0))
    this.step()
    assert lib.changed == []
    this.step()
    assert len(lib.answers) == 1 and lib.changed == [(1, Code.OK)]
    this.step()
    assert lib.rooms == [(1, False), (1, True)], "what is unloaded refuses at once"
