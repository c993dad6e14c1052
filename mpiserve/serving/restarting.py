"""Replicas of several ranks whose models run in child processes, which restart together.

Where the model runs in the ranks themselves, heads and followers are those of tensor_parallel.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np
from mpi4py import MPI

from mpiserve.backends.base import Backend
from mpiserve.backends.torch.peers import listen
from mpiserve.errors import Code, Error, ModelError
from mpiserve.mpi.requests import SHORTEST
from mpiserve.serving import tensor_parallel
from mpiserve.serving.isolation.isolated import LOOK, RETRY
from mpiserve.serving.isolation.part import IsolatedPart
from mpiserve.serving.isolation.process import LostError
from mpiserve.serving.tensor_parallel import ALIVE, LATE, UNTAKEN, Arrays, Awaited

LOSE, START = 5, 6  # more commands of the head: end the child; start another one
DEAD = 4  # a tag: a child has died while it had nothing to do
STUCK = "the process of a model does not end"
KILLED = 30.0  # seconds that a thread may take to find its child killed

logger = logging.getLogger("mpiserve")


class _Team(tensor_parallel.Team):
    """The base of head and follower.

    Args:
        backend: Returns the backend that answers now.
        args: As of tensor_parallel.
    """

    def __init__(self, backend: Callable[[], Backend], *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._backend = backend
        self._look_at = 0.0

    @property
    def _model(self) -> IsolatedPart | None:
        backend = self._backend()
        return backend if isinstance(backend, IsolatedPart) else None

    def arrays(self, rows: int) -> Arrays:
        """Return memory for the inputs of a batch: of the child, if there is one."""
        found = self._model.inputs(rows) if self._model else None
        return super().arrays(rows) if found is None else tuple(found)

    def _due(self) -> bool:
        """Whether it is time to look at the children."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + LOOK
        return True

    def _stop_part(self) -> bool:
        """End the child, and with it what the thread of the part does; return whether it ended."""
        if self._model:
            self._model.kill()
        if self.part.busy and not self.part.wait(KILLED):
            return False
        if self._model:
            self._model.discard()
        return True


class Head(_Team, tensor_parallel.Head):
    """A head that restarts the children of all ranks when one is lost, or the ranks differ."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._starting: Awaited | None = None
        self._began = self._try_at = 0.0

    # ---- batches

    def run(self, batch: Arrays, *, part: bool = False) -> Any:
        """Run a batch on all ranks, after a restart if one is needed.

        Raises:
            LostError: If a child is lost, or the ranks are out of step: all start again.
            Error: If all parts failed alike, or the replica is given up.
        """
        model = self._model
        if not model:
            return super().run(batch)
        try:
            result = self._run_again(model, batch, part)
        except MPI.Exception as error:  # a rank is gone, and this MPI reports it
            self._break(str(error))
        model.succeed()
        return result

    def _run_again(self, model: IsolatedPart, batch: Arrays, part: bool) -> Any:
        """Run a batch; once more if a child had died before it."""
        for again in (True, False):
            self._ensure(model)
            try:
                return super().run(batch)
            except LostError as error:
                self._lose(model, error, part=part)
                if error.taken or not again:
                    raise
        raise AssertionError

    def _fall_out(self, awaited: Awaited) -> NoReturn:
        if not self._model:
            super()._fall_out(awaited)
        error = LostError(Code.EMODEL, tensor_parallel.differ(awaited))
        error.taken = tensor_parallel.lost(awaited) != UNTAKEN
        raise error

    def change(self, what: int, version: str) -> None:
        """Have the followers change their model, as the head does next."""
        if self._starting and self._model:
            with suppress(Error):  # another version may do better
                self._ensure(self._model)
        super().change(what, version)

    def stop(self) -> None:
        """Stop the followers."""
        if self._model and (self._starting or self.part.busy):
            self._stop_part()
        super().stop()

    # ---- restarts

    def supervise(self) -> None:
        """Look after the children; called after each batch, and a few times a second without."""
        model = self._model
        if not model:
            self._backend().supervise()
        elif self._due() and not self.broken:
            with suppress(ModelError):  # the answer to the next request
                try:
                    self._look_after(model)
                except MPI.Exception as error:
                    self._break(str(error))

    def _look_after(self, model: IsolatedPart) -> None:
        if not self._starting:
            self._look_for_deaths(model)
            self._start_again(model)
        elif self._look(self._starting, 0.0):
            self._end_start(model)

    def _start_again(self, model: IsolatedPart) -> None:
        """Start children in place of those that are lost, while other replicas answer."""
        now = time.monotonic()
        if not model.lost or model.given_up or now < self._try_at:
            return
        self._try_at = now + RETRY
        if model.service.replicas > 1:
            self._start(model)
            model.unavailable = True
        else:
            with suppress(Error):  # it is logged, and the answer to the next request
                self._ensure(model)

    def _ensure(self, model: IsolatedPart) -> None:
        """Have children on all ranks.

        Raises:
            ModelError: If they cannot be started, or not any more.
        """
        if not self._starting and not model.lost:
            return
        if model.given_up or self.broken:
            raise ModelError(Code.EMODEL, model.given_up or self.broken)
        if not self._starting:
            self._start(model)
        assert self._starting
        self._wait(self._starting)
        if text := self._end_start(model):
            raise ModelError(Code.EMODEL, f"the model cannot be started again: {text}")

    def _start(self, model: IsolatedPart) -> None:
        self._began = time.monotonic()
        self._sequence += 1
        listener = listen(model.host)
        port = listener.getsockname()[1]
        self._send(START, port)
        self.part.do(model.starter(port, listener))
        self._starting = Awaited(model.service.load_timeout_s + LATE)

    def _end_start(self, model: IsolatedPart) -> str:
        """End a restart; return why it failed, or ""."""
        assert self._starting
        awaited, self._starting = self._starting, None
        model.unavailable = False
        name, ms = model.service.name, (time.monotonic() - self._began) * 1e3
        if self._all_well(awaited):
            text = "service %s: the %d processes of a replica are started again after %.0f ms"
            logger.warning(text, name, self.comm.size, ms)
            return ""
        wrong = tensor_parallel.differ(awaited)
        logger.error("service %s: the model cannot be started again: %s", name, wrong)
        self._lose(model, LostError(Code.EMODEL, wrong), part=False)
        return wrong

    def _all_well(self, awaited: Awaited) -> bool:
        reports = awaited.reports.values()
        all_there = awaited.mine and len(reports) == len(self._followers)
        wrong = awaited.mine is None or awaited.mine.error is not None
        return bool(all_there and not wrong and not any(report.text for report in reports))

    def _lose(self, model: IsolatedPart, error: LostError, *, part: bool) -> None:
        """End the children of all ranks.

        Raises:
            ModelError: If a rank does not say that it has done so: the replica is given up.
        """
        self._send(LOSE)
        if not self._stop_part():
            self._break(STUCK)
        model.lose(error, part=part)
        end, silent = time.monotonic() + KILLED + LATE, set(self._followers)
        while silent:
            silent -= {rank for rank in silent if self._done(rank)}
            if silent and time.monotonic() > end:
                self._break(tensor_parallel.gone(min(silent)).text)
            time.sleep(SHORTEST)

    def _done(self, rank: int) -> bool:
        """Receive the word of a rank that has ended its child."""
        with self.mpi():
            found = self.comm.Iprobe(source=rank, tag=ALIVE)
            if found:
                self.comm.Recv(np.zeros(0, np.uint8), source=rank, tag=ALIVE)
        return bool(found)

    def _look_for_deaths(self, model: IsolatedPart) -> None:
        """Notice children that have died while they had nothing to do."""
        if error := model.dead():
            self._note_death(model, 0, error.text)
        port = np.zeros(1, np.int64)
        for rank in self._followers:
            with self.mpi():
                found = self.comm.Iprobe(source=rank, tag=DEAD)
                if found:
                    self.comm.Recv(port, source=rank, tag=DEAD)
            if found and port[0] == model.port and not model.lost:
                self._note_death(model, rank, "the model's process has died between two batches")

    def _note_death(self, model: IsolatedPart, rank: int, text: str) -> None:
        text = f"tensor-parallel rank {rank}: {text}"
        logger.warning("service %s: %s", model.service.name, text)
        self._lose(model, LostError(Code.EMODEL, text), part=False)


class Follower(_Team, tensor_parallel.Follower):
    """A follower that ends and starts its child as the head commands."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._notice = np.zeros(1, np.int64)

    def step(self) -> bool:
        """Check once for all that Follower looks for, and whether the child lives."""
        if self._due() and not self._running:
            self._look_at_child()
        goes_on = super().step()
        if not goes_on and self.part.busy:
            self._stop_part()
        return goes_on

    def _look_at_child(self) -> None:
        model = self._model
        if model and not self.broken and model.dead():
            self._notice[0] = model.port
            model.discard()
            self.comm.Isend(self._notice, dest=0, tag=DEAD).Free()

    def _do(self, what: int, argument: int) -> None:
        model = self._model
        if model and what != tensor_parallel.RUN:
            self._settle(lose=what in (LOSE, START))
        if what == START and model:
            self.part.do(model.starter(argument, None))
            self._running = True
        elif what == LOSE:
            self._tell_alive()
        else:
            super()._do(what, argument)

    def _settle(self, *, lose: bool) -> None:
        """End what the part does, of which the head expects no outcome any more."""
        if (lose or self.part.busy) and not self._stop_part():
            self.broken = STUCK
        self._running = False
