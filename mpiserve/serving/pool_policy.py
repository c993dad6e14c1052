"""Decide which ranks of an adaptive pool hold the models of which services.

No MPI and no clock: what is measured and the time are passed in, so the same measurements
give the same moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mpiserve.config import PoolConfig

ENOUGH = 0.5  # a service whose ranks are less busy than this needs no more of them
FRESH = 0.4  # the weight of a new measurement
AGAIN = 20  # times least_s, after which a rank is asked again to load what it could not load


class Report(NamedTuple):
    """The measurements of a rank over an interval, for each service of the pool.

    Attributes:
        seconds: The length of the interval.
        busy: Seconds that the rank computed.
        rows: Rows that it answered.
        waiting: Rows that waited at it, on average.
    """

    seconds: float
    busy: Sequence[float]
    rows: Sequence[float]
    waiting: Sequence[float]


class Move(NamedTuple):
    """A rank gives one service up and takes another one.

    Attributes:
        rank: The rank in the pool.
        gives: Position in the pool of the service to give up; -1 if the rank has room for both.
        takes: Position in the pool of the service to take.
        loads: The load of each service: ranks that it would keep busy, for each rank that holds it.
        rest: The load of `gives` after the move.
    """

    rank: int
    gives: int
    takes: int
    loads: tuple[float, ...]
    rest: float


def first_holders(able: Sequence[set[int]], loaded: int, services: int) -> list[set[int]]:
    """Assign the services to ranks at start, in turn; each to at least one rank if possible.

    Args:
        able: The services that each rank can load.
        loaded: The number of services that a rank holds at a time.
        services: The number of services.
    """
    holders: list[list[int]] = [[] for _ in able]
    for service in range(services):
        _place(service, holders, able, loaded, set())
    holds = [set(held) for held in holders]
    for rank, held in enumerate(holds):
        turn = [(rank * loaded + i) % services for i in range(services)]
        for service in turn:
            if len(held) < loaded and service in able[rank]:
                held.add(service)
    return holds


def _place(
    service: int, holders: list[list[int]], able: Sequence[set[int]], loaded: int, tried: set[int]
) -> bool:
    """Find a rank for a service; if none has room, move another service to another rank."""
    ranks = [rank for rank in range(len(able)) if service in able[rank]]
    # The rank whose turn it is, as long as all can load all.
    for rank in sorted(ranks, key=lambda rank: (rank != service // loaded, rank)):
        if rank in tried:
            continue
        tried.add(rank)
        if len(holders[rank]) < loaded:
            holders[rank].append(service)
            return True
        for other in holders[rank]:
            if _place(other, holders, able, loaded, tried):
                holders[rank][holders[rank].index(other)] = service
                return True
    return False


class Policy:
    """Decides who moves, one at a time.

    The demand for a service is the part of the time that its ranks compute for it, and the time
    that the rows which wait would take, in ranks. Its load is the demand for each rank that
    holds it. A rank moves when the load of what it takes is `hysteresis` times what the load of
    what it gives up will be: for the same demand it would never move back. Measurements are
    smoothed, and between two moves `least_s` seconds pass. The last rank that holds a service
    keeps it.

    Args:
        settings: The settings of the pool.
        able: The services that each rank can load.
        holds: The services that each rank holds.
    """

    def __init__(
        self, settings: PoolConfig, able: Sequence[set[int]], holds: Sequence[set[int]]
    ) -> None:
        self.holds = [set(held) for held in holds]
        self._settings = settings
        self._able = able
        self._services = range(len(settings.services))
        self._busy = [[0.0 for _ in self._services] for _ in holds]
        self._waiting = [[0.0 for _ in self._services] for _ in holds]
        self._cost = [0.0 for _ in self._services]  # seconds of a row
        self._moving = False
        self._next = float("-inf")
        self._failed: dict[tuple[int, int], float] = {}  # rank and service: when to try again

    def see(self, rank: int, report: Report) -> None:
        """Add the measurements of a rank."""
        for s in self._services:
            if report.rows[s] > 0:
                cost = report.busy[s] / report.rows[s]
                self._cost[s] += (FRESH if self._cost[s] else 1) * (cost - self._cost[s])
            _smooth(self._busy[rank], s, report.busy[s] / report.seconds)
            _smooth(self._waiting[rank], s, report.waiting[s])

    def decide(self, now: float) -> Move | None:
        """Return the move that helps most, if one is worth it; then none until `moved` is called.

        Args:
            now: The time in seconds, of any steady clock.
        """
        if self._moving or now < self._next:
            return None
        loads = tuple(self._load(s) for s in self._services)
        for takes in sorted(self._services, key=lambda s: -loads[s]):
            moves = self._moves_to(takes, loads, now) if loads[takes] > ENOUGH else []
            if moves:
                self._moving = True
                return min(moves, key=lambda move: (move.rest, self._others(move), move.rank))
        return None

    def moved(self, move: Move, holds: set[int], now: float) -> None:
        """Record the services that the rank holds after a move, whether it succeeded or not."""
        self._moving = False
        self._next = now + self._settings.least_s
        self.holds[move.rank] = set(holds)
        self._busy[move.rank] = [0.0 for _ in self._services]
        self._waiting[move.rank] = [0.0 for _ in self._services]
        if move.takes not in holds:
            self._failed[move.rank, move.takes] = now + AGAIN * self._settings.least_s

    def _holders(self, service: int) -> int:
        return sum(service in held for held in self.holds)

    def _demand(self, service: int) -> float:
        waiting = sum(rows[service] for rows in self._waiting) * self._cost[service]
        return sum(busy[service] for busy in self._busy) + waiting / self._settings.interval_s

    def _load(self, service: int, less: int = 0) -> float:
        """Return the load if `less` ranks gave the service up; infinity if none would hold it."""
        ranks = self._holders(service) - less
        return self._demand(service) / ranks if ranks > 0 else float("inf")

    def _moves_to(self, takes: int, loads: tuple[float, ...], now: float) -> list[Move]:
        found = []
        for rank, held in enumerate(self.holds):
            if takes in held or takes not in self._able[rank]:
                continue
            if now < self._failed.get((rank, takes), now):
                continue
            room = len(held) < (self._settings.loaded or len(self._services))
            for gives in [-1] if room else sorted(held):
                rest = 0.0 if room else self._load(gives, 1)
                if loads[takes] > self._settings.hysteresis * rest:
                    found.append(Move(rank, gives, takes, loads, rest))
        return found

    def _others(self, move: Move) -> float:
        """Return how busy the rank is with the services that it keeps."""
        return sum(self._busy[move.rank][s] for s in self.holds[move.rank] if s != move.gives)


def _smooth(values: list[float], at: int, value: float) -> None:
    values[at] += FRESH * (value - values[at])
