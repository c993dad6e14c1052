"""Who moves in an adaptive pool: the same measurements give the same moves."""

import random

import pytest

from mpiserve.config import PoolConfig
from mpiserve.serving.pool_policy import AGAIN, Policy, Report, first_holders

INTERVAL, LEAST, ROW = 0.5, 2.0, 0.01  # seconds; ROW: that a row takes


class Pool:
    """Ranks that answer what they are given, an interval at a time.

    A service's rows come at a rate; what its ranks cannot do waits, at most so much as clients
    have under way.
    """

    MOST = 40  # rows that wait

    def __init__(self, ranks, services, loaded=1, able=None, **settings):
        names = [f"s{i}" for i in range(services)]
        table = {"interval_s": INTERVAL, "least_s": LEAST, "loaded": loaded} | settings
        self.settings = PoolConfig(ranks=ranks, services=names, **table)
        self.able = able or [set(range(services))] * ranks
        self.holds = first_holders(self.able, loaded, services)
        self.policy = Policy(self.settings, self.able, self.holds)
        self.waiting = [0.0] * services
        self.now, self.moves = 0.0, []

    def step(self, rates, noise=0.0, draw=None):
        """One interval: rates are in ranks that the work keeps busy."""
        services = range(len(rates))
        busy = [[0.0 for _ in services] for _ in self.holds]
        for s in services:
            holders = [rank for rank, held in enumerate(self.holds) if s in held]
            work = rates[s] * INTERVAL + self.waiting[s] * ROW
            if draw:
                work *= 1 + noise * draw.uniform(-1, 1)
            for rank in holders:
                busy[rank][s] = min(work / len(holders), INTERVAL / len(self.holds[rank]))
            left = work - sum(busy[rank][s] for rank in holders)
            self.waiting[s] = min(left / ROW, self.MOST)
        for rank, mine in enumerate(busy):
            waiting = [
                self.waiting[s] / sum(s in held for held in self.holds) if s in held else 0.0
                for held in [self.holds[rank]]
                for s in services
            ]
            rows = [seconds / ROW for seconds in mine]
            self.policy.see(rank, Report(INTERVAL, mine, rows, waiting))
        self.now += INTERVAL
        move = self.policy.decide(self.now)
        if move:
            self.carry_out(move)
        for s in services:
            assert any(s in held for held in self.holds), "the last holder keeps a service"
        return move

    def carry_out(self, move):
        self.moves.append((self.now, move.rank, move.gives, move.takes))
        held = self.holds[move.rank]
        assert move.gives in held and move.takes not in held
        self.holds[move.rank] = held - {move.gives} | {move.takes}
        self.policy.moved(move, self.holds[move.rank], self.now)

    def run(self, steps, *rates, **noise):
        for _ in range(steps):
            self.step(rates, **noise)
        return [sum(s in held for held in self.holds) for s in range(len(rates))]


def test_load_moves_from_one_service_to_the_other_and_back():
    pool = Pool(3, 2)
    assert pool.run(10, 2.0, 0.2) == [2, 1]
    assert pool.moves == []
    begin = pool.now
    assert pool.run(4, 0.0, 2.5) == [1, 2]
    assert pool.moves[0][0] <= begin + 3 * INTERVAL, "within three intervals"
    assert pool.run(10, 2.5, 0.0) == [2, 1]
    assert len(pool.moves) == 2


def test_the_same_measurements_give_the_same_moves():
    def moves():
        pool, draw = Pool(4, 3), random.Random(3)
        for step in range(60):
            pool.step([2.0 * (step // 20 == s) + 0.1 for s in range(3)], 0.2, draw)
        return pool.moves

    assert moves() == moves() != []


@pytest.mark.parametrize("rates", [(0.8, 0.8), (0.2, 0.2), (5.0, 5.0), (1.4, 0.9), (0.0, 0.0)])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_equal_or_small_load_that_is_noisy_moves_nobody_to_and_fro(ranks, rates):
    pool = Pool(ranks, 2)
    draw = random.Random(ranks)
    for _ in range(400):
        pool.step(rates, 0.3, draw)
    assert len(pool.moves) <= 1


def test_two_moves_are_some_time_apart():
    pool = Pool(6, 2)
    pool.run(40, 0.0, 9.0)
    times = [time for time, *_ in pool.moves]
    assert len(times) == 2 and times[1] - times[0] >= LEAST
    assert all(takes == 1 for *_, takes in pool.moves)


def test_three_services_share_by_their_loads():
    pool = Pool(6, 3)
    assert pool.run(1, 0.1, 0.1, 0.1) == [2, 2, 2]
    assert pool.run(40, 6.0, 0.1, 0.1) == [4, 1, 1]
    assert pool.run(60, 0.1, 6.0, 0.1) == [1, 4, 1]
    assert pool.run(60, 0.1, 2.0, 4.0) == [1, 3, 2]


def test_a_rank_that_holds_several_gives_the_idle_one():
    pool = Pool(2, 3, loaded=2)
    assert pool.holds == [{0, 1}, {0, 2}]
    pool.run(10, 0.1, 0.1, 3.0)
    assert pool.holds == [{1, 2}, {0, 2}], "0 is held twice, 1 once"


def test_what_a_rank_could_not_load_is_not_tried_again_soon():
    pool = Pool(3, 2)
    failed = []

    def fail(move):
        failed.append((pool.now, move.rank))
        pool.policy.moved(move, pool.holds[move.rank], pool.now)

    pool.carry_out = fail
    pool.run(200, 0.0, 3.0)
    by_rank = {rank: [at for at, r in failed if r == rank] for _, rank in failed}
    assert set(by_rank) == {0, 2}, "another rank is tried instead"
    for times in by_rank.values():
        assert len(times) >= 2
        assert all(b - a >= AGAIN * LEAST for a, b in zip(times, times[1:], strict=False))


def test_nobody_moves_while_one_does():
    pool = Pool(4, 2)
    pool.carry_out = lambda move: pool.moves.append(move)
    pool.run(50, 0.0, 4.0)
    assert len(pool.moves) == 1


def test_room_is_used_before_a_model_is_let_go():
    able = [{0, 1}, {0, 1}, {0, 1}]
    policy = Policy(Pool(3, 2).settings, able, [{0}, {1}, set()])
    for rank in range(3):
        policy.see(rank, Report(INTERVAL, [INTERVAL * (rank == 0), 0], [50, 0], [20, 0]))
    policy.see(0, Report(INTERVAL, [INTERVAL, 0], [50, 0], [20, 0]))
    move = policy.decide(1.0)
    assert (move.rank, move.gives, move.takes) == (2, -1, 0)


ALL = {0, 1, 2}


@pytest.mark.parametrize(
    ("able", "loaded", "holds"),
    [
        ([ALL] * 3, 1, [{0}, {1}, {2}]),
        ([ALL] * 5, 1, [{0}, {1}, {2}, {0}, {1}]),
        ([ALL] * 2, 2, [{0, 1}, {0, 2}]),
        ([{1, 2}, ALL, ALL], 1, [{1}, {0}, {2}]),
        ([{2}, {1, 2}, ALL], 1, [{2}, {1}, {0}]),
        ([{0}, {0}, {0}], 1, [{0}, {0}, {0}]),
        ([set(), ALL], 2, [set(), {0, 1}]),
    ],
)
def test_every_service_has_a_holder_at_start_if_that_can_be(able, loaded, holds):
    assert first_holders(able, loaded, 3) == holds
