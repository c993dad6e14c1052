"""Measure this rank's load, report it to the pool's leader, and carry out the moves it sends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from mpiserve.errors import Code, Error, PeerError
from mpiserve.failure import check_interrupt, describe
from mpiserve.mpi.requests import Pause, complete
from mpiserve.serving.loading import LOADING
from mpiserve.serving.pool_policy import Move, Policy, Report, first_holders

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.backends.base import Backend
    from mpiserve.config import PoolConfig
    from mpiserve.serving.served_model import ServedModel

logger = logging.getLogger("mpiserve")

LEADER = 0  # the rank of a pool that decides
TAG = 1
REPORT, MOVED, MOVE, END = 1, 2, 3, 4  # kinds of messages
LOOKS = 10  # for messages in an interval
LONGEST = 0.05  # seconds between two of these looks


class Channel:
    """Sends short messages between the ranks of a pool, and waits only at the end.

    A message is 3 + 3 n numbers for n services: its kind, two numbers, and three for each service.
    MPI sends so small a message without waiting for the receiver.

    Args:
        lib: The session handle of this rank; its thread is kept out of MPI meanwhile.
        comm: The ranks of the pool.
        services: The number of services of the pool.
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

    def receive(self) -> Iterator[tuple[int, int, list[float]]]:
        """Yield the messages that have arrived: sender, kind, numbers."""
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
        """Wait until the messages are sent; return whether they are."""
        return all(complete(request, seconds) for request, _ in self._sent)

    @contextmanager
    def _mpi(self) -> Iterator[None]:
        self._lib.mpi_take()
        try:
            yield
        finally:
            self._lib.mpi_give()


class Meter:
    """Measures the load of a rank in an interval, by service.

    Args:
        models: The models of the rank, which count their work.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = models
        self._clear(time.monotonic())

    def _clear(self, now: float) -> None:
        self._begin = now
        self._before = self._work()
        self._waiting, self._looks = [0.0 for _ in self._models], 0

    def _work(self) -> list[tuple[float, int]]:
        return [(model.seconds, model.rows) for model in self._models]

    def sample(self, waiting: list[int]) -> None:
        """Add the rows that wait now, of each service."""
        self._looks += 1
        self._waiting = [sum(pair) for pair in zip(self._waiting, waiting, strict=True)]

    def read(self, now: float) -> Report:
        """Return the measurements, and start a new interval."""
        looks = max(1, self._looks)
        waiting = [rows / looks for rows in self._waiting]
        pairs = list(zip(self._before, self._work(), strict=True))
        busy = [after[0] - before[0] for before, after in pairs]
        rows = [float(after[1] - before[1]) for before, after in pairs]
        report = Report(max(now - self._begin, 1e-6), busy, rows, waiting)
        self._clear(now)
        return report

    def since(self, now: float) -> float:
        """Return the seconds since the interval began."""
        return now - self._begin


class Loading:
    """Loads a model in a thread, which calls no MPI, while the rank answers batches."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.before = model.backend
        self.backend: Backend | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._load, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def end(self) -> None:
        """End the load, and close the model if it is loaded: nobody needs it any more."""
        self.model.loader.abandon()
        self._thread.join(LOADING)
        if self.backend:
            self.model.let_go(self.backend)

    def _load(self) -> None:
        try:
            self.backend = self.model.load_again()
        except BaseException as error:
            self.error = error


class AdaptivePool:
    """Loads and suspends the models of a rank, as the leader of the pool decides.

    The rank's `Worker` calls it at start, in each step and at the end.

    Args:
        lib: The session handle of this rank.
        models: The models of all services of the pool.
        comm: The ranks of the pool.
        settings: The settings of the pool.

    Attributes:
        broken: Whether messages among the ranks of the pool may be under way.
        longest_wait: Seconds that a step may wait for a batch.
    """

    def __init__(
        self,
        lib: core.Session,
        models: Sequence[ServedModel],
        comm: MPI.Comm,
        settings: PoolConfig,
    ) -> None:
        self._lib = lib
        self._models = models
        self._settings = settings
        self._channel = Channel(lib, comm, len(models))
        self._meter = Meter(models)
        self._holds: set[int] = set()
        self._policy: Policy | None = None  # of the leader
        self._decided: Move | None = None  # the leader's decision that is not done yet
        self._move: tuple[int, int] | None = None  # the services that this rank gives up and takes
        self._loading: Loading | None = None
        self._look_at = 0.0
        self._moves = 0
        self._ended: set[int] = set()  # ranks that send no more messages
        self.broken = True
        self.longest_wait = settings.interval_s / LOOKS

    # ---- start and end

    def prepare(self) -> list[dict[str, Any]]:
        """Load each model once, so that errors are found now; keep those that this rank holds.

        Returns:
            The description of each service to publish.

        Raises:
            PeerError: If a rank of the pool does not come.
        """
        rank, services = self._channel.comm.rank, range(len(self._models))
        loaded = self._settings.loaded or len(services)
        every = [set(services)] * self._channel.comm.size
        mine = first_holders(every, loaded, len(services))[rank]
        described = self._load_each(mine)
        able = self._agree()
        holds = first_holders(able, loaded, len(services))
        self._hold(mine, holds[rank], described)
        for s in services:
            if not any(s in held for held in holds) and not self._models[s].failed:
                self._fail(s, "no rank of the pool that can load it has room for it", described)
        if rank == LEADER:
            self._policy = Policy(self._settings, able, holds)
        return [described[s] for s in services]

    def _load_each(self, mine: set[int]) -> dict[int, dict[str, Any]]:
        """Load each model; those that are kept come last."""
        described = {}
        for s in sorted(range(len(self._models)), key=lambda s: s in mine):
            described[s] = self._models[s].prepare()
            if s not in mine and not self._models[s].failed:
                self._models[s].suspend()
        return described

    def _agree(self) -> list[set[int]]:
        """Learn which services each rank can load."""
        mine = np.array([not model.failed for model in self._models], np.uint8)
        every = np.zeros((self._channel.comm.size, len(mine)), np.uint8)
        if not complete(self._channel.comm.Iallgather(mine, every), LOADING):
            text = f"a rank of the pool has not loaded its models within {LOADING:g} s"
            raise PeerError(Code.EPEER, text)
        return [{s for s, able in enumerate(row) if able} for row in every]

    def _hold(self, had: set[int], holds: set[int], described: dict[int, dict[str, Any]]) -> None:
        """Load and suspend models where the first choice has changed, as others failed to load."""
        for s in had - holds:
            if not self._models[s].failed:
                self._models[s].suspend()
        for s in holds - had:
            try:
                self._models[s].resume(self._models[s].load_again())
            except BaseException as error:
                check_interrupt()
                self._fail(s, describe(error), described)
        self._holds = {s for s in holds if not self._models[s].failed}

    def _fail(self, s: int, text: str, described: dict[int, dict[str, Any]]) -> None:
        described[s] |= {"error_code": Code.EMODEL, "error_text": text}
        self._models[s].failed = True

    def start(self) -> None:
        """Suspend the services that other ranks hold, after all are published."""
        for s, model in enumerate(self._models):
            if s not in self._holds and not model.failed:
                self._lib.suspend(s, True)
        self._meter = Meter(self._models)

    def end(self) -> None:
        """Exchange END messages, so that no message stays under way."""
        if self._loading:
            self._loading.end()
        leads = self._channel.comm.rank == LEADER
        others = set(range(1, self._channel.comm.size)) if leads else {LEADER}
        for rank in others:
            self._channel.send(rank, END)
        pause, limit = Pause(), time.monotonic() + LOADING
        while self._ended != others and time.monotonic() < limit:
            # Some have come before: that of a rank which saw sooner that all have left.
            self._ended |= {rank for rank, what, _ in self._channel.receive() if what == END}
            pause()
        self.broken = self._ended != others or not self._channel.wait_sent(LOADING)

    def summary(self) -> str:
        """Name the services that this rank holds, and count the moves."""
        held = " and ".join(self._models[s].service.name for s in sorted(self._holds))
        moves = f"; moves of the pool: {self._moves}" if self._policy else ""
        return f"holds {held or 'nothing'}{moves}"

    # ---- in each step

    def answer(self, batch: core.Batch) -> None:
        """Run a model on a batch and reply; measure the time, and the rows that wait meanwhile."""
        self._meter.sample([self._lib.queue_rows(s) for s in range(len(self._models))])
        model = self._models[batch.service]
        with model.timed():
            model.answer(batch)

    def look(self) -> None:
        """Exchange messages if it is time to, and take the next step of a move."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + min(self.longest_wait, LONGEST)
            self._exchange(now)
        if self._move:
            self._go_on(*self._move)

    def _exchange(self, now: float) -> None:
        """Receive messages, report measurements, and decide on a move."""
        for rank, what, numbers in self._channel.receive():
            self._handle(rank, what, numbers, now)
        if self._meter.since(now) >= self._settings.interval_s and not self._move:
            report = self._meter.read(now)
            flat = [report.seconds, 0.0, *report.busy, *report.rows, *report.waiting]
            self._send(LEADER, REPORT, flat, now)
        if self._policy:
            self._decide(self._policy, now)

    def _send(self, rank: int, what: int, numbers: list[float], now: float) -> None:
        if rank == self._channel.comm.rank:
            self._handle(rank, what, numbers, now)
        else:
            self._channel.send(rank, what, *numbers)

    def _handle(self, rank: int, what: int, numbers: list[float], now: float) -> None:
        n = len(self._models)
        if what == END:
            self._ended.add(rank)
        elif what == MOVE:
            self._move = int(numbers[0]), int(numbers[1])
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
            self._send(move.rank, MOVE, [move.gives, move.takes], now)

    def _log(self, move: Move, held: set[int] | None = None) -> None:
        """Log a decision with its figures, or its outcome if `held` is given."""
        names = [model.service.name for model in self._models]
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

    def _go_on(self, gives: int, takes: int) -> None:
        """Take the next step of a move: suspend, load, or go back if that fails."""
        if self._loading:
            if self._loading.done:
                self._arrive(self._loading, gives, takes)
            return
        if any(self._models[s].changes.open for s in (gives, takes) if s >= 0):
            return  # a change of version ends first
        if gives in self._holds:
            self._holds.discard(gives)
            self._lib.suspend(gives, True)
        if gives >= 0 and not self._models[gives].idle:
            return  # it still holds requests
        if gives >= 0:
            self._models[gives].suspend()
        self._loading = Loading(self._models[takes])

    def _arrive(self, loading: Loading, gives: int, takes: int) -> None:
        model = loading.model
        if loading.error is None and model.backend is not loading.before:
            if loading.backend:  # a client has changed the version meanwhile
                model.let_go(loading.backend)
            self._loading = Loading(model)
            return
        if loading.error is None and loading.backend:
            model.resume(loading.backend)
            self._holds.add(model.index)
            self._lib.suspend(model.index, False)
        else:
            error = loading.error or Error(Code.EMODEL, "nothing was loaded")
            logger.error("%s cannot be loaded: %s", model.service.name, describe(error))
            if model.index == takes and gives >= 0:
                self._loading = Loading(self._models[gives])
                return
        self._move = self._loading = None
        self._meter = Meter(self._models)
        held = [0.0, 0.0] + [float(s in self._holds) for s in range(len(self._models))]
        self._send(LEADER, MOVED, held, time.monotonic())
