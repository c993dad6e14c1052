"""Another version of a model in place of the one that answers, while requests come in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Backend, module_of, read_again
from mpiserve.errors import Code, Error, ModelError
from mpiserve.failure import check_interrupt, code_of, describe

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.config import ServiceConfig


class Change(IntEnum):
    """What a client asks of a head; mpiserve_change of mpiserve.h."""

    LOAD = 1
    SWAP = 2
    DROP = 3
    UNLOAD = 4


Order = tuple[int, int, int, str]  # service, Change, world rank that asks, version


class Unloaded(Backend):
    """Stands where a model was: every batch is an error that says so."""

    def run(self, inputs: Any) -> Any:
        """Refuse."""
        text = f"service '{self.service.name}' has no model now: it was unloaded; reload it"
        raise ModelError(Code.EMODEL, text)


class Resting(Backend):
    """Stands where a model was that a rank of an adaptive pool has given up."""

    def run(self, inputs: Any) -> Any:
        """Refuse; the broker gives no batch of a service that rests."""
        raise ModelError(Code.EMODEL, f"service '{self.service.name}' rests on this rank")


class Versions:
    """The version that answers at this rank, and perhaps one that is to.

    Args:
        service: Its table, as it is written in the configuration.
        make: Loads a version, ready to answer.
        put: Makes a backend the one that answers, and lets the one before go.
        let_go: Closes a backend that is not to answer; does not raise.
    """

    def __init__(
        self,
        service: ServiceConfig,
        make: Callable[[ServiceConfig], Backend],
        put: Callable[[Backend], None],
        let_go: Callable[[Backend], None],
    ) -> None:
        self._service = service
        self._make = make
        self._put = put
        self._let_go = let_go
        self._next: tuple[ServiceConfig, Backend | None] | None = None
        self.now = service.of_version()

    def do(self, what: int, version: str) -> None:
        """Do what a client asks; in step with the other ranks of the replica.

        Raises:
            Exception: Whatever the model raises that could not be loaded.
        """
        steps = {Change.SWAP: self.swap, Change.DROP: self.drop, Change.UNLOAD: self.unload}
        if what == Change.LOAD:
            self.load(version)
        else:
            steps[Change(what)]()

    def load(self, version: str) -> None:
        """Load a version, or only check its name where there is no memory for both."""
        self.drop()
        wanted = self._service.of_version(version or self.now.version)
        beside = self._service.reload == "beside"
        self._next = wanted, self._fresh(wanted) if beside else None

    def swap(self) -> None:
        """Answer with what was loaded."""
        if self._next is None:
            raise Error(Code.ESTATE, "no version was loaded that could take over")
        (wanted, backend), self._next = self._next, None
        self._put(backend or self._in_place(wanted))
        self.now = wanted

    def drop(self) -> None:
        """Let go of what was loaded, if there is anything."""
        if self._next and self._next[1]:
            self._let_go(self._next[1])
        self._next = None

    def unload(self) -> None:
        """Let the model go."""
        self.drop()
        self._put(Unloaded(self.now))

    def _in_place(self, wanted: ServiceConfig) -> Backend:
        """Load a version where the one before was; go back to that if it fails."""
        self._put(Unloaded(self.now))
        try:
            return self._fresh(wanted)
        except BaseException:
            check_interrupt()
            self._put(self._fresh(self.now))
            raise

    def _fresh(self, service: ServiceConfig) -> Backend:
        named = (service.backend, service.model, service.preprocess, service.postprocess)
        specs = [spec for spec in named if spec and ":" in spec]
        for module in {module_of(spec, service.folder) for spec in specs}:
            read_again(module)
        return self._make(service)


class Changes:
    """Answers what clients ask of a head's model, one after the other.

    Args:
        lib: Of this rank.
        versions: Of its model.
        tell: Has the other ranks of the replica do the same.
        aside: Whether loading may go on in a thread, while batches are answered.
        idle: Tells whether the model has answered all that it has taken.
    """

    def __init__(
        self,
        lib: core.Session,
        versions: Versions,
        tell: Callable[[int, str], None],
        aside: bool,
        idle: Callable[[], bool],
    ) -> None:
        self._lib = lib
        self._versions = versions
        self._tell = tell
        self._aside = aside
        self._idle = idle
        self._owner = -1  # the client whose version is loaded, and does not answer yet
        self._order: Order = 0, 0, -1, ""
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._waiting = False  # for the model to be idle

    @property
    def pending(self) -> bool:
        """Whether something was begun that has not ended."""
        return self._thread is not None or self._waiting

    @property
    def open(self) -> bool:
        """Whether a client has begun to change the version, and has not ended it."""
        return self.pending or self._owner != -1

    def begin(self, order: Order) -> None:
        """Do what a client asks, or begin with it."""
        self._order = service, what, client, version = order
        if self._owner not in (-1, client):
            # Who was refused lets go of what it has not got.
            code = Code.OK if what == Change.DROP else Code.ESTATE
            text = f"rank {self._owner} is changing the version of this service"
            self._lib.change_reply(service, code, text)
        elif what == Change.LOAD and self._aside:
            self._thread = threading.Thread(target=self._do, args=(what, version), daemon=True)
            self._thread.start()
        elif what in (Change.SWAP, Change.UNLOAD) and not self._idle():
            self._waiting = True  # the broker gives no batch of this service meanwhile
        else:
            self._do(what, version)
            self._finish()

    def look(self) -> None:
        """See whether the thread is done, or the model idle, so that it may go."""
        if self._thread and not self._thread.is_alive():
            self._thread = None
            self._finish()
        elif self._waiting and self._idle():
            self._waiting = False
            self._do(*self._order[1::2])
            self._finish()

    def _do(self, what: int, version: str) -> None:
        self._error = None
        try:
            self._tell(what, version)
            self._versions.do(what, version)
        except BaseException as error:
            self._error = error
            check_interrupt()

    def _finish(self) -> None:
        service, what, client, _ = self._order
        if client == self._owner or what == Change.LOAD:
            loaded = what == Change.LOAD and self._error is None
            self._owner = client if loaded else -1
        if self._error is None:
            self._lib.change_reply(service, Code.OK, "")
            return
        self._lib.change_reply(service, code_of(self._error), describe(self._error))
