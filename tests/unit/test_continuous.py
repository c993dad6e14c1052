"""Requests that a model takes one by one: nothing that it raises ends more than they."""

from types import SimpleNamespace

import numpy as np
import pytest

from mpiserve.backends.base import Steps
from mpiserve.serving.continuous import Stepper


class Lib:
    """Holds what it is given."""

    def __init__(self):
        self.answers, self.cancelled = {}, set()

    def hold_batch(self):
        return self.tickets

    def wants(self, ticket):
        return ticket.name not in self.cancelled

    def reply_ticket(self, ticket, outputs):
        assert ticket.name not in self.answers
        self.answers[ticket.name] = float(outputs[0])

    def fail_ticket(self, ticket, code, text):
        assert ticket.name not in self.answers
        self.answers[ticket.name] = text

    def ask(self, stepper, **values):
        self.tickets = [
            SimpleNamespace(name=name, row=i, rows=1, client=0) for i, name in enumerate(values)
        ]
        stepper.take(SimpleNamespace(inputs=(np.array([*values.values()], float),)))


class Model(Steps):
    """Answers a value after as many steps as it says; a step fails with a negative one."""

    def __init__(self):
        self.held, self.steps, self.trouble = {}, 0, set()

    def _may(self, what):
        if what in self.trouble:
            raise KeyboardInterrupt(what)

    @property
    def busy(self):
        self._may("busy")
        return bool(self.held)

    @property
    def room(self):
        self._may("room")
        return True

    def begin(self, key, client, inputs):
        assert key not in self.held
        if inputs[0][0] == 99:
            raise ValueError("99")
        self.held[key] = [inputs[0][0], inputs[0][0]]

    def step(self):
        self.steps += 1
        for held in self.held.values():
            held[0] -= 1
        bad = [value for _, value in self.held.values() if value < 0]
        if bad:
            raise SystemExit(f"{bad[0]:g}")
        done = [key for key, (left, _) in self.held.items() if left <= 0]
        return {key: self.held.pop(key)[1] for key in done}

    def drop(self, key):
        del self.held[key]
        self._may("drop")


@pytest.fixture
def world():
    def make():
        lib, model, reports = Lib(), Model(), []

        def report(error):
            reports.append(str(error))
            return str(error)

        return lib, model, Stepper(lib, model, lambda x, rows: [x], report), reports

    return make


def run(stepper, steps=100):
    for _ in range(steps):
        stepper.go_on()
        if stepper.idle:
            return
    raise AssertionError("it never ends")


def test_requests_join_and_each_is_answered_when_it_has_ended(world):
    lib, model, stepper, _ = world()
    lib.ask(stepper, a=3, b=1)
    stepper.go_on()
    lib.ask(stepper, c=1)
    assert stepper.room
    run(stepper)
    assert [*lib.answers] == ["b", "c", "a"]
    assert model.steps == 3


def test_a_step_that_fails_fails_what_runs_and_nothing_else(world):
    lib, model, stepper, _ = world()
    lib.ask(stepper, a=2, b=-1)
    run(stepper)
    lib.ask(stepper, c=1)
    run(stepper)
    assert lib.answers == {"a": "-1", "b": "-1", "c": 1}


def test_cancelled_requests_are_dropped(world):
    lib, model, stepper, _ = world()
    lib.ask(stepper, a=3, b=2)
    lib.cancelled.add("a")
    run(stepper)
    assert lib.answers == {"b": 2} and not model.held


def test_what_fails_at_its_beginning_fails_alone(world):
    lib, _, stepper, _ = world()
    lib.ask(stepper, a=1, b=99)
    run(stepper)
    assert lib.answers == {"a": 1, "b": "99"}


@pytest.mark.parametrize("what", ["busy", "room", "drop"])
def test_a_model_that_cannot_say_what_it_is_fails_what_it_has(world, what):
    lib, model, stepper, reports = world()
    lib.ask(stepper, a=2, b=-1)
    model.trouble.add(what)
    assert stepper.room  # who comes is told, and not kept waiting
    run(stepper)
    assert set(lib.answers) == {"a", "b"} and what in reports
    model.trouble.clear()
    lib.ask(stepper, c=1)
    run(stepper)
    assert lib.answers["c"] == 1


@pytest.mark.parametrize("results", [None, 3, {77: 1.0}, {0: KeyboardInterrupt("mine")}])
def test_results_that_are_none_are_failures(world, results):
    lib, model, stepper, reports = world()
    lib.ask(stepper, a=1)
    model.step = lambda: results
    stepper.go_on()
    assert reports and (lib.answers == {}) == (results == {77: 1.0})
