"""Halves of a batch that failed, until who makes the model fail is alone."""

from types import SimpleNamespace

import numpy as np
import pytest

from mpiserve.errors import Code, Error
from mpiserve.serving.failed_batch import Splitter


class Lib:
    """Holds the requests of one batch, which lie in it one behind the other or in another order."""

    def __init__(self, sizes, answered=(), order=None):
        at = np.cumsum([0, *sizes])
        self.tickets = [
            SimpleNamespace(key=i, row=int(at[i]), rows=rows, client=10 + i)
            for i, rows in enumerate(sizes)
        ]
        self.open = set(range(len(sizes))) - set(answered)
        self.answers = {}
        self.order = order or range(len(sizes))
        self.batch = SimpleNamespace(inputs=(np.arange(at[-1]) * 1.0, np.arange(at[-1]) % 7))

    def hold_batch(self):
        return [self.tickets[i] for i in self.order]

    def wants(self, ticket):
        return ticket.key in self.open

    def reply_ticket(self, ticket, outputs):
        self._answer(ticket, outputs[0].tolist())

    def fail_ticket(self, ticket, code, text):
        assert code == Code.EMODEL
        self._answer(ticket, text)

    def _answer(self, ticket, answer):
        self.open.remove(ticket.key)
        assert ticket.key not in self.answers
        self.answers[ticket.key] = answer


def split(lib, guilty=(), changes=False):
    """Split a batch of a model that fails for some rows of its first input; count its calls."""
    calls = []

    def run(inputs, clients):
        first, second = inputs
        assert len(first) == len(second) == len(clients)
        assert not first.flags.writeable and (second == first % 7).all()
        calls.append(list(dict.fromkeys(clients.tolist())))
        bad = [row for row in first if row in guilty]
        if changes:
            first.flags.writeable = True
            first[:] = -1
        if bad:
            raise ValueError(f"row {bad[0]:g}")
        return [3 * inputs[0]]

    done = Splitter(lib, run, str).split(lib.batch)
    assert not done or not lib.open
    return done, calls


def expected(lib, guilty):
    whole = lib.batch.inputs[0]
    answers = {}
    for t in lib.tickets:
        rows = whole[t.row : t.row + t.rows]
        bad = [row for row in rows if row in guilty]
        answers[t.key] = f"row {bad[0]:g}" if bad else (3 * rows).tolist()
    return answers


@pytest.mark.parametrize("guilty", [{0}, {7}, {13}, {3, 9}, {0, 1, 2}, set(range(14)), set()])
@pytest.mark.parametrize("order", [None, [3, 0, 7, 5, 1, 2, 6, 4]])
def test_each_request_has_its_own_answer(guilty, order):
    lib = Lib([1, 2, 3, 1, 1, 2, 3, 1], order=order)
    done, calls = split(lib, guilty)
    assert done and lib.answers == expected(lib, guilty)
    assert len(calls) <= 2 * 8 - 2


def test_when_all_fail_the_calls_are_bounded():
    for n in range(1, 20):
        _, calls = split(Lib([1] * n), set(range(n)))
        assert len(calls) == max(1, 2 * n - 2)


def test_one_guilty_of_many_costs_few_calls():
    _, calls = split(Lib([1] * 64), {21})
    assert len(calls) == 2 * 6


def test_answered_requests_are_left_alone():
    lib = Lib([2, 2, 2, 2], answered=[0, 1])
    done, calls = split(lib, {5})
    assert done and lib.answers == {2: "row 5", 3: [18, 21]}
    assert calls == [[12], [13]]


def test_who_gave_up_meanwhile_is_not_computed():
    lib = Lib([1, 1, 1, 1])
    lib.reply_ticket(lib.tickets[0], [np.array([0.0])])
    done, calls = split(lib, {1})
    assert done and calls == [[11], [12, 13]]


def test_what_a_model_does_to_its_inputs_before_it_fails_is_not_seen_by_others():
    lib = Lib([1] * 8)
    split(lib, {2, 5}, changes=True)
    innocent = [lib.answers[key] for key in (0, 1, 3, 4, 6, 7)]
    assert innocent == [[-3.0]] * 6 and lib.answers[2] == "row 2"
    assert (lib.batch.inputs[0] == np.arange(8)).all()


@pytest.mark.parametrize("error", [MemoryError(), Error(Code.ENOMEM, "no memory")])
def test_without_memory_the_batch_is_as_it_was(error):
    lib = Lib([1, 1])

    def hold():
        raise error

    lib.hold_batch = hold
    assert split(lib) == (False, [])
