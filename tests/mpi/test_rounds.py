"""What is in a batch of a reproducible service depends on what was asked, never on when."""

import time

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, python, tensor

STEPS, MOST = 12, 0.004  # seconds of a random delay
PATIENCE = 0.5  # seconds that a round waits for ranks


def service(**settings):
    x, y = tensor("x", "float64", 2), tensor("y", "float64", 3)
    return python("placed", [x], [y], reproducible=True, **settings)


def rows_of(rank, step):
    return (2 * rank + step) % 4 + 1


def asked(rank, step, rows=rows_of):
    return np.full((rows(rank, step), 2), 100.0 * rank + step)


def expected(ranks, step, most, rows=rows_of):
    """The answers of a step by rank, if requests are taken rank by rank, as many as fit."""
    batches = [[]]
    for rank in range(ranks):
        x = asked(rank, step, rows)
        if sum(len(other) for _, other in batches[-1]) + len(x) > most:
            batches.append([])
        batches[-1].append((rank, x))
    answers = {}
    for batch in batches:
        whole = np.concatenate([x for _, x in batch])
        place = np.arange(len(whole), dtype=float)
        y = np.stack([place, np.full(len(whole), len(whole)), np.full(len(whole), whole.sum())], 1)
        for rank, x in batch:
            answers[rank], y = y[: len(x)], y[len(x) :]
    return answers


def wait_at_random(seed):
    time.sleep(MOST * np.random.default_rng(seed).random())


@pytest.mark.roles(simulation=3, inference=1)
@pytest.mark.parametrize("most", [64, 6])
def test_each_batch_has_a_request_of_every_rank_in_their_order(world, most):
    def simulate(session):
        served, comm = session.service("net"), session.comm
        flying = []
        for step in range(STEPS):
            wait_at_random(None)
            flying.append(served.submit(asked(comm.rank, step)))
            if len(flying) < 1 + comm.rank:  # ranks run ahead of others
                continue
            before = step + 1 - len(flying)
            right = expected(comm.size, before, most)[comm.rank]
            np.testing.assert_array_equal(flying.pop(0).result(), right)
        for request in flying:
            request.result()

    counters = couple(world, {"net": service(max_batch_rows=most)}, simulate)
    if world.role == INFERENCE:
        assert counters["closed_by_delay"] == 0
        assert counters["batches_in_place"] == 0


@pytest.mark.roles(simulation=3, inference=1)
@pytest.mark.parametrize(("most", "remarks"), [(4, 1), (64, 0)])
def test_rounds_in_batches_of_one_request_are_remarked_once(world, caplog, most, remarks):
    def simulate(session):
        served, rank = session.service("net"), session.comm.rank
        for step in range(STEPS):
            served(asked(rank, step, lambda *_: 4))

    couple(world, {"net": service(max_batch_rows=most)}, simulate)
    if world.role == INFERENCE:
        said = [text for text in caplog.messages if "batches hold one request each" in text]
        assert len(said) == remarks


@pytest.mark.roles(simulation=3, inference=1)
def test_a_request_in_pieces_takes_part_once(world):
    """However many pieces a rank's request has, also without a rest: all but the last are alone."""
    most = 4

    def rows(rank, step):
        return [1, 5, 12][(rank + step) % 3]

    def simulate(session):
        served, comm = session.service("net"), session.comm
        for step in range(STEPS):
            wait_at_random(None)
            answer = served(asked(comm.rank, step, rows))
            whole = len(answer) - ((len(answer) - 1) % most + 1)  # before the last piece
            np.testing.assert_array_equal(answer[:whole, 1], most)
            right = expected(comm.size, step, most, lambda r, s: (rows(r, s) - 1) % most + 1)
            np.testing.assert_array_equal(answer[whole:], right[comm.rank])
            comm.barrier()  # nobody may wait for a request of the next step

    counters = couple(world, {"net": service(max_batch_rows=most)}, simulate)
    if world.role == INFERENCE:
        assert counters["closed_by_delay"] == 0


@pytest.mark.roles(simulation=3, inference=1)
def test_a_rank_that_has_left_or_asks_nothing_by_0_rows_holds_up_nobody(world):
    def some(rank, step):
        return 0 if (rank + step) % 3 == 0 or step % 4 == 3 else rows_of(rank, step)

    def simulate(session):
        served, comm = session.service("net"), session.comm
        flying = [served.submit(asked(comm.rank, 0, some))]
        for step in range(STEPS):  # two at a time
            wait_at_random(None)
            flying.append(served.submit(asked(comm.rank, step + 1, some)))
            right = expected(comm.size, step, 64, some)[comm.rank]
            np.testing.assert_array_equal(flying.pop(0).result(), right)
        flying[0].result()
        for step in range(comm.rank * STEPS // 2):  # they leave one after the other
            served(asked(comm.rank, step))

    counters = couple(world, {"net": service(allow_empty=True)}, simulate)
    if world.role == INFERENCE:
        assert counters["closed_by_delay"] == 0


@pytest.mark.roles(simulation=3, inference=1)
def test_a_rank_that_does_not_ask_is_named_and_not_waited_for_again(world, caplog):
    def simulate(session):
        served, comm = session.service("net"), session.comm
        for step in range(STEPS):
            if comm.rank != 1:
                served(asked(comm.rank, step))
        comm.barrier()
        back = served.submit(asked(comm.rank, 0)) if comm.rank == 1 else None
        end = time.monotonic() + PATIENCE / 4
        while back and time.monotonic() < end:
            assert not back.done()
        comm.barrier()  # it is there before the others ask, or they would not wait for it
        for step in range(STEPS):
            answer = back.result() if back else served(asked(comm.rank, step))
            right = expected(comm.size, step, 64)[comm.rank]
            np.testing.assert_array_equal(answer[:, 1], right[:, 1])
            comm.barrier()
            back = None

    begin = time.monotonic()
    counters = couple(world, {"net": service(max_delay_us=int(1e6 * PATIENCE))}, simulate)
    if world.role == INFERENCE:
        assert counters["closed_by_delay"] == 1
        assert time.monotonic() - begin > PATIENCE
        said = [r.getMessage() for r in caplog.records if "is reproducible" in r.getMessage()]
        rank = [r for r in range(world.comm.size) if r != world.comm.rank][1]
        first = (
            f"service 'net' is reproducible, and had to run a batch without simulation rank {rank}"
        )
        assert said[0].startswith(f"{first}, which did not ask within {PATIENCE:g} s (")
        assert said[-1].endswith(f" ({STEPS} irregular rounds): results depend on time")


@pytest.mark.roles(simulation=3, inference=1)
def test_requests_of_one_shape_share_a_batch_in_the_order_of_ranks(world):
    def simulate(session):
        served, comm = session.service("net"), session.comm
        for step in range(STEPS):
            wait_at_random(None)
            width = 2 + comm.rank % 2  # ranks 0 and 2 are alike
            answer = served(np.full((2, width), float(step)))
            batch = [4, 2][comm.rank % 2]
            begin = 2 * (comm.rank == 2)
            np.testing.assert_array_equal(answer[:, 0], [begin, begin + 1])
            np.testing.assert_array_equal(answer[:, 1], batch)

    x = {"name": "x", "dtype": "float64", "shape": [-1, -1], "max_shape": [-1, 4]}
    free = python("placed", [x], [tensor("y", "float64", 3)], reproducible=True)
    counters = couple(world, {"net": free}, simulate)
    if world.role == INFERENCE:
        assert counters["batches"] == 2 * STEPS
        assert counters["closed_by_delay"] == 0


@pytest.mark.roles(simulation=2, inference=1)
def test_ranks_that_find_no_rows_free_are_told_of(world, caplog):
    """One rank takes all rows for requests of later rounds, so the other one can ask nothing."""
    rows = 4096  # of which the smallest pool has room for twice as many

    def simulate(session):
        served, comm = session.service("net"), session.comm
        if comm.rank == 0:
            flying = [served.submit(np.ones((rows, 2))) for _ in range(3)]
            comm.barrier()
        else:
            comm.barrier()
            flying = [served.submit(np.ones((rows, 2))) for _ in range(3)]
        for request in flying:
            assert len(request.result()) == rows

    counters = couple(world, {"net": service(max_batch_rows=rows, pool_bytes=1)}, simulate)
    if world.role == INFERENCE:
        assert counters["closed_by_delay"] > 0
        assert any("raise its pool_bytes" in r.getMessage() for r in caplog.records)


@pytest.mark.roles(simulation=2, inference=1)
def test_patience_begins_anew_after_a_request_that_was_cancelled(world):
    def simulate(session):
        served, comm = session.service("net"), session.comm
        if comm.rank == 0:
            request = served.submit(asked(0, 0))
            end = time.monotonic() + PATIENCE / 5
            while time.monotonic() < end:
                assert not request.done()
            request.cancel()
        time.sleep(1.5 * PATIENCE)
        comm.barrier()
        time.sleep(comm.rank * PATIENCE / 5)
        right = expected(2, 1, 64)[comm.rank]
        np.testing.assert_array_equal(served(asked(comm.rank, 1)), right)

    counters = couple(world, {"net": service(max_delay_us=int(1e6 * PATIENCE))}, simulate)
    if world.role == INFERENCE:
        assert counters["cancelled"] == 1
        assert counters["closed_by_delay"] == 0
