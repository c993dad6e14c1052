"""Who waits at a head, who need not, and who is not wanted any more."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, numbers, python, scaling, tensor

from mpiserve.errors import CancelledError, Code, DeadlineError, QueueFullError

pytestmark = pytest.mark.roles(simulation=3, inference=1)

SHORT = 0.05  # seconds


class Gate:
    """A model that writes down what it sees, and answers nothing until it is opened."""

    def __init__(self, name):
        folder = Path(os.environ["MPISERVE_TEST_DIR"])
        self.seen_file, self.gate = folder / f"{name}.seen", folder / f"{name}.gate"
        self.options = {"seen": str(self.seen_file), "gate": str(self.gate)}

    def service(self, **settings):
        x, y = tensor("x", "float64"), tensor("y", "float64")
        return {"noted": python("noted", [x], [y], options=self.options, **settings)}

    def seen(self):
        text = self.seen_file.read_text() if self.seen_file.exists() else ""
        return [int(line) for line in text.split()]

    def occupy(self, session, service):
        """Let rank 0 keep the model at work; every rank returns when it is."""
        request = service.submit(np.ones(1)) if session.comm.rank == 0 else None
        while not self.seen():
            time.sleep(0.001)
        session.comm.Barrier()
        return request

    def open(self, session):
        session.comm.Barrier()
        if session.comm.rank == 0:
            self.gate.touch()


def late(request, text):
    with pytest.raises(DeadlineError, match=text) as caught:
        request.result()
    assert caught.value.code == Code.EDEADLINE
    assert request.done()


def test_the_model_never_sees_what_is_not_wanted_any_more(world):
    gate = Gate("unwanted")

    def simulate(session):
        service = session.service("noted")
        request = gate.occupy(session, service)
        if session.comm.rank == 0:
            # Three more are in flight with it, the next one waits here for its turn.
            expired = service.submit(np.full(1, 2.0), deadline=SHORT)
            given_up = service.submit(np.full(1, 3.0), deadline=60)
            wanted = service.submit(np.full(1, 4.0), deadline=60)
            unsent = service.submit(np.full(1, 5.0), deadline=SHORT)
            late(expired, "no reply from rank 3 by the deadline")
            given_up.cancel()
            with pytest.raises(CancelledError):
                given_up.result()
        else:
            # This rank computes: it is the head that finds the deadline passed.
            expired = service.submit(np.full(1, 6.0), deadline=SHORT)
            time.sleep(2 * SHORT)
        gate.open(session)
        if session.comm.rank == 0:
            assert [float(r.result()[0]) for r in (request, wanted)] == [3, 9]
            late(unsent, "while earlier requests of this rank were under way")
            assert service(np.full(1, 7.0))[0] == 15
            assert gate.seen() == [1, 4, 7]
        else:
            while 4 not in gate.seen():
                time.sleep(0.001)
            late(expired, "deadline")

    # A delay that nobody could wait for: those that are dropped must not count as asking.
    counters = couple(world, gate.service(max_delay_us=1000), simulate)
    if world.role == INFERENCE:
        assert (counters["dropped"], counters["cancelled"]) == (2, 2)
        assert (counters["requests"], counters["errors"]) == (7, 4)


def test_a_deadline_does_not_wait_for_the_delay(world):
    def simulate(session):
        service = session.service("scale")
        session.comm.Barrier()
        if session.comm.rank == 0:  # the others are waited for, in vain
            x = numbers(2, 4)
            np.testing.assert_array_equal(service.submit(x, deadline=1.0).result(), 2 * x + 1)
        session.comm.Barrier()

    counters = couple(world, {"scale": scaling(max_delay_us=20_000_000)}, simulate)
    if world.role == INFERENCE:
        assert (counters["closed_by_delay"], counters["dropped"]) == (1, 0)


def test_higher_priorities_are_computed_first(world):
    gate = Gate("priorities")
    asked = {0: [(0, 10), (-1, 11)], 1: [(0, 20), (5, 21), (0, 22)], 2: [(1, 30), (0, 31)]}

    def simulate(session):
        service = session.service("noted")
        request = gate.occupy(session, service)
        requests = [
            service.submit(np.full(1, float(value)), priority=priority)
            for priority, value in asked[session.comm.rank]
        ]
        gate.open(session)
        for each in [*requests, *([request] if request else [])]:
            each.result()
        with pytest.raises(ValueError, match="priority 101 is not in -100 to 100"):
            service.submit(np.ones(1), priority=101)

    couple(world, gate.service(max_batch_rows=1), simulate)
    if world.role == INFERENCE:
        # 20 comes before its rank's 21, which is urgent. In between the order of arrival.
        assert gate.seen() == [1, 20, 21, 30, 10, 22, 31, 11]


def test_a_full_queue_rejects_and_an_empty_one_takes_any_request(world):
    gate = Gate("reject")

    def simulate(session):
        service = session.service("noted")
        gate.occupy(session, service)
        requests = [service.submit(np.full(1, 2.0)) for _ in range(2)]
        gate.open(session)
        answered = 0
        for request in requests:
            try:
                answered += request.result()[0] == 5
            except QueueFullError as error:
                assert error.code == Code.EFULL
                assert "'noted': 2 rows wait already, max_queue_rows is 2" in error.text
        assert session.comm.allreduce(int(answered)) == 2
        if session.comm.rank == 0:
            np.testing.assert_array_equal(service(np.full(4, 3.0)), np.full(4, 7.0))
        session.comm.Barrier()

    limits = {"max_batch_rows": 4, "max_queue_rows": 2, "on_full": "reject"}
    counters = couple(world, gate.service(**limits), simulate)
    if world.role == INFERENCE:
        assert counters["rejected"] == counters["errors"] == 4


def test_who_finds_no_room_waits_for_it_and_for_no_delay(world):
    def simulate(session):
        service = session.service("scale")
        session.comm.Barrier()
        asked = [numbers(1 + 20 * (i % 9 == 0) + i % 3, 4, start=100 * i) for i in range(40)]
        requests = [service.submit(x, priority=i % 2) for i, x in enumerate(asked)]
        requests[7].cancel()
        for i, (x, request) in enumerate(zip(asked, requests, strict=True)):
            if i == 7:
                continue
            np.testing.assert_array_equal(request.result(), 2 * x + 1)
            assert request.stats["batch_rows"] <= max(4, len(x))

    described = scaling(max_batch_rows=32, max_queue_rows=4, max_delay_us=2_000_000)
    counters = couple(world, {"scale": described}, simulate)
    if world.role == INFERENCE:
        assert counters["errors"] == counters["cancelled"] <= 3
        assert counters["closed_by_rows"] > counters["closed_by_delay"]
