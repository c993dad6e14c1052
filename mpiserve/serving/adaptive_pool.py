"""The ranks of an adaptive pool at work: each holds the models of some services, and moves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from mpiserve.errors import Code, Error, PeerError
from mpiserve.failure import check_interrupt, describe
from mpiserve.mpi.requests import Pause, complete
from mpiserve.serving.loading import LOADING
from mpiserve.serving.pool_policy import Move, Policy, Report, first_holders
from mpiserve.serving.served_model import IDLE
from mpiserve.serving.worker import Pool

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.backends.base import Backend
    from mpiserve.config import PoolConfig
    from mpiserve.config.partition import Assignment
    from mpiserve.serving.served_model import Server

logger = logging.getLogger("mpiserve")

LEADER = 0  # the rank of a pool that decides
TAG = 1
REPORT, MOVED, MOVE, END = 1, 2, 3, 4  # what messages say
LOOKS = 10  # for messages in an interval
LONGEST = 0.05  # seconds between two of these looks


class Channel:
    """Short messages between the ranks of a pool: nobody waits, but at the end.

    A message is 3 + 3 n numbers, n being the services of the pool: what it says, two numbers,
    and three for each service. So small a message is sent whatever the receiver does.

    Args:
        lib: Of this rank; its thread is kept out of MPI meanwhile.
        comm: The ranks of the pool.
        services: Their number.
    """

    def __init__(self, lib: core.Session, comm: MPI.Comm, services: int) -> None:
        self.comm = comm
        self._lib = lib
        self._size = 3 + 3 * services
        self._sent: list[tuple[MPI.Request, np.ndarray]] = []

    def send(self, to: int, what: int, *numbers: float) -> None:
        """Send a message; numbers that are left out are 0."""
        message = np.zeros(self._size)
        message[: 1 + len(numbers)] = what, *numbers
        with self._mpi():
            self._sent = [sent for sent in self._sent if not sent[0].Test()]
            self._sent.append((self.comm.Isend(message, dest=to, tag=TAG), message))

    def hear(self) -> Iterator[tuple[int, int, list[float]]]:
        """Give what has come: of whom, what it says, its numbers."""
        status = MPI.Status()
        while True:
            with self._mpi():
                if not self.comm.Iprobe(source=MPI.ANY_SOURCE, tag=TAG, status=status):
                    return
                message = np.empty(self._size)
                self.comm.Recv(message, source=status.source, tag=TAG)
            what, *numbers = message.tolist()
            yield status.source, int(what), numbers

    def wait_sent(self, seconds: float) -> bool:
        """Wait until what was sent has left."""
        return all(complete(request, seconds) for request, _ in self._sent)

    @contextmanager
    def _mpi(self) -> Iterator[None]:
        self._lib.mpi_take()
        try:
            yield
        finally:
            self._lib.mpi_give()


class Meter:
    """What a rank measures in an interval, by service."""

    def __init__(self, services: int) -> None:
        self._services = services
        self._clear(time.monotonic())

    def _clear(self, now: float) -> None:
        self._begin = now
        self.busy, self.rows = [0.0] * self._services, [0.0] * self._services
        self._waiting, self._looks = [0.0] * self._services, 0

    def look(self, waiting: list[int]) -> None:
        """Count what waits now."""
        self._looks += 1
        self._waiting = [sum(pair) for pair in zip(self._waiting, waiting, strict=True)]

    def read(self, now: float) -> Report:
        """Give what was measured, and begin anew."""
        looks = max(1, self._looks)
        waiting = [rows / looks for rows in self._waiting]
        report = Report(max(now - self._begin, 1e-6), self.busy, self.rows, waiting)
        self._clear(now)
        return report

    def since(self, now: float) -> float:
        """Tell how long it has measured."""
        return now - self._begin


class Loading:
    """Loads a model in a thread, which calls no MPI; batches are answered meanwhile."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.before = server.backend
        self.backend: Backend | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._load, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until it has ended, at most as long as loading may take."""
        self._thread.join(LOADING)

    def _load(self) -> None:
        try:
            self.backend = self.server.load_again()
        except BaseException as error:
            self.error = error


class AdaptivePool(Pool):
    """Serves the services that it holds; the others rest here, until the pool's leader says.

    Args:
        pool: All ranks of the pool, each with a assignment like this one.
    """

    def __init__(
        self,
        lib: core.Session,
        assignment: Assignment,
        comm: MPI.Comm | None = None,
        local_rank: int = 0,
        *,
        pool: MPI.Comm,
        settings: PoolConfig,
    ) -> None:
        super().__init__(lib, assignment, comm, local_rank)
        self._settings = settings
        self._channel = Channel(lib, pool, len(self.servers))
        self._meter = Meter(len(self.servers))
        self._holds: set[int] = set()
        self._policy: Policy | None = None  # of the leader
        self._decided: Move | None = None  # and what it has decided and is not done
        self._order: tuple[int, int] | None = None  # what this rank gives up and takes
        self._loading: Loading | None = None
        self._look_at = 0.0
        self._moves = 0
        self._ended: set[int] = set()  # ranks that have said that they send no more
        self.broken = True  # messages of the pool may be under way

    # ---- start and end

    def _prepare(self) -> list[dict[str, Any]]:
        """Load each service once, so that what is broken is told now; keep what is ours.

        Raises:
            PeerError: If a rank of the pool does not come.
        """
        rank, services = self._channel.comm.rank, range(len(self.servers))
        loaded = self._settings.loaded or len(services)
        every = [set(services)] * self._channel.comm.size
        mine = first_holders(every, loaded, len(services))[rank]
        described = {}
        for s in sorted(services, key=lambda s: s in mine):
            described[s] = self.servers[s].prepare()
            if s not in mine and not self.servers[s].failed:
                self.servers[s].rest()
        able = self._agree()
        holds = first_holders(able, loaded, len(services))
        self._hold(mine, holds[rank], described)
        for s in services:
            if not any(s in held for held in holds) and not self.servers[s].failed:
                text = "no rank of the pool that can load it has room for it"
                described[s] |= {"error_code": Code.EMODEL, "error_text": text}
                self.servers[s].failed = True
        if rank == LEADER:
            self._policy = Policy(self._settings, able, holds)
        return [described[s] for s in services]

    def _agree(self) -> list[set[int]]:
        """Learn which services each rank can load."""
        mine = np.array([not server.failed for server in self.servers], np.uint8)
        every = np.zeros((self._channel.comm.size, len(mine)), np.uint8)
        if not complete(self._channel.comm.Iallgather(mine, every), LOADING):
            text = f"a rank of the pool has not loaded its models within {LOADING:g} s"
            raise PeerError(Code.EPEER, text)
        return [{s for s, able in enumerate(row) if able} for row in every]

    def _hold(self, had: set[int], holds: set[int], described: dict[int, dict[str, Any]]) -> None:
        """Hold what others cannot: seldom anything else than what it has."""
        for s in had - holds:
            if not self.servers[s].failed:
                self.servers[s].rest()
        for s in holds - had:
            server = self.servers[s]
            try:
                server.put(server.load_again())
            except BaseException as error:
                check_interrupt()
                server.failed = True
                text = describe(error)
                described[s] |= {"error_code": Code.EMODEL, "error_text": text}
        self._holds = {s for s in holds if not self.servers[s].failed}

    def _begin(self) -> None:
        for s, server in enumerate(self.servers):
            if s not in self._holds and not server.failed:
                self.lib.suspend(s, True)
        self._meter = Meter(len(self.servers))

    def _end(self) -> None:
        """Take leave of the others: no message is left on its way."""
        if self._loading:
            self._loading.wait()
            if self._loading.backend:
                self._loading.server.let_go(self._loading.backend)
        leads = self._channel.comm.rank == LEADER
        others = set(range(1, self._channel.comm.size)) if leads else {LEADER}
        for rank in others:
            self._channel.send(rank, END)
        pause, limit = Pause(), time.monotonic() + LOADING
        while self._ended != others and time.monotonic() < limit:
            # Some have come before: that of a rank which saw sooner that all have left.
            self._ended |= {rank for rank, what, _ in self._channel.hear() if what == END}
            pause()
        self.broken = self._ended != others or not self._channel.wait_sent(LOADING)

    # ---- at work

    def step(self, timeout: float = IDLE) -> bool:
        """Answer one batch, or wait for one in vain; and go on with moving."""
        if not super().step(min(timeout, self._settings.interval_s / LOOKS)):
            return False
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + min(self._settings.interval_s / LOOKS, LONGEST)
            self._talk(now)
        if self._order:
            self._move()
        return True

    def _answer(self, batch: core.Batch) -> None:
        begin, s = time.monotonic(), batch.service
        self._meter.look([self.lib.queue_rows(s) for s in range(len(self.servers))])
        super()._answer(batch)
        self._meter.busy[s] += time.monotonic() - begin
        self._meter.rows[s] += batch.rows

    def _go_on(self) -> None:
        for s, server in enumerate(self.servers):
            begin, busy = time.monotonic(), server.busy
            server.go_on()
            server.look()
            if busy:
                self._meter.busy[s] += time.monotonic() - begin

    def _talk(self, now: float) -> None:
        """Hear the others, report what was measured, decide."""
        for rank, what, numbers in self._channel.hear():
            self._take(rank, what, numbers, now)
        if self._meter.since(now) >= self._settings.interval_s and not self._order:
            report = self._meter.read(now)
            flat = [report.seconds, 0.0, *report.busy, *report.rows, *report.waiting]
            self._tell(LEADER, REPORT, flat, now)
        if self._policy:
            self._decide(self._policy, now)

    def _tell(self, rank: int, what: int, numbers: list[float], now: float) -> None:
        if rank == self._channel.comm.rank:
            self._take(rank, what, numbers, now)
        else:
            self._channel.send(rank, what, *numbers)

    def _take(self, rank: int, what: int, numbers: list[float], now: float) -> None:
        n = len(self.servers)
        if what == END:
            self._ended.add(rank)
        elif what == MOVE:
            self._order = int(numbers[0]), int(numbers[1])
            self._loading = None
        elif self._policy and what == REPORT:
            parts = (numbers[2 + i * n : 2 + (i + 1) * n] for i in range(3))
            self._policy.see(rank, Report(numbers[0], *parts))
        elif self._policy and self._decided and what == MOVED:
            held = {s for s in range(n) if numbers[2 + s]}
            self._policy.moved(self._decided, held, now)
            self._log(self._decided, held)
            self._decided = None

    def _decide(self, policy: Policy, now: float) -> None:
        move = policy.decide(now)
        if move:
            self._decided = move
            self._log(move)
            self._tell(move.rank, MOVE, [move.gives, move.takes], now)

    def _log(self, move: Move, held: set[int] | None = None) -> None:
        """Log what is decided, with the figures, or how it ended."""
        names = [server.service.name for server in self.servers]
        gives = names[move.gives] if move.gives >= 0 else "nothing"
        what = f"pool rank {move.rank} from {gives} to {names[move.takes]}"
        if held is None:
            loads = ", ".join(f"{n} {x:.2f}" for n, x in zip(names, move.loads, strict=True))
            text = "moving %s: load %s per rank; %s will have %.2f"
            logger.info(text, what, loads, gives, move.rest)
        elif move.takes in held:
            self._moves += 1
            logger.info("moved %s", what)
        else:
            now = " and ".join(names[s] for s in sorted(held)) or "nothing"
            logger.error("could not move %s; it holds %s", what, now)

    def _move(self) -> None:
        """Take the next step of a move: give up, load, or go back if that fails."""
        assert self._order
        gives, takes = self._order
        if not self._loading:
            if any(self.servers[s].changing for s in self._order if s >= 0):
                return  # to another version: first things first
            if gives in self._holds:
                self._holds.discard(gives)
                self.lib.suspend(gives, True)
            if gives >= 0 and not self.servers[gives].idle:
                return  # with requests that are held
            if gives >= 0:
                self.servers[gives].rest()
            self._loading = Loading(self.servers[takes])
        elif self._loading.done:
            self._arrive(self._loading, gives, takes)

    def _arrive(self, loading: Loading, gives: int, takes: int) -> None:
        server = loading.server
        if loading.error is None and server.backend is not loading.before:
            if loading.backend:  # another version was asked for meanwhile, or none
                server.let_go(loading.backend)
            self._loading = Loading(server)
            return
        at = self.servers.index(server)
        if loading.error is None and loading.backend:
            server.put(loading.backend)
            self._holds.add(at)
            self.lib.suspend(at, False)
        else:
            error = loading.error or Error(Code.EMODEL, "nothing was loaded")
            logger.error("%s cannot be loaded: %s", server.service.name, describe(error))
            if at == takes and gives >= 0:
                self._loading = Loading(self.servers[gives])
                return
        self._order = self._loading = None
        self._meter = Meter(len(self.servers))
        held = [0.0, 0.0] + [float(s in self._holds) for s in range(len(self.servers))]
        self._tell(LEADER, MOVED, held, time.monotonic())

    def summary(self) -> str:
        """Say in one line what this rank has done."""
        held = " and ".join(self.servers[s].service.name for s in sorted(self._holds))
        moves = f"; moves of the pool: {self._moves}" if self._policy else ""
        return f"{super().summary()}; holds {held or 'nothing'}{moves}"
