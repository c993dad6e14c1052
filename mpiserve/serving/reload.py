"""Replace the version of a model while requests come in."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from mpiserve.backends.base import Backend, module_of, read_again
from mpiserve.errors import Code, Error
from mpiserve.failure import check_interrupt, code_of, describe

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.config import ServiceConfig
    from mpiserve.serving.served_model import ServedModel


BOTH = "its derivatives change with it"


class Change(IntEnum):
    """The kind of a change; the values of mpiserve_change in mpiserve.h."""

    LOAD = 1
    SWAP = 2
    DROP = 3
    UNLOAD = 4
    START = 5
    STOP = 6
    REPLACE = 7


class ChangeRequest(NamedTuple):
    """A request for a change: the service, the kind, the world rank of the client, a version."""

    service: int
    change: int
    client: int
    version: str


VERSION = (Change.LOAD, Change.SWAP, Change.DROP, Change.UNLOAD)


class Versions:
    """Loads the next version of a model on this rank, and switches to it.

    The models of its derivatives do the same, so that they never are of another version.

    Args:
        model: The model whose version changes.

    Attributes:
        derivatives: The models of the services that answer with its derivatives.
    """

    def __init__(self, model: ServedModel) -> None:
        self.derivatives: list[ServedModel] = []
        self._model = model
        self._next: tuple[ServiceConfig, Backend | None] | None = None

    def apply(self, change: int, version: str) -> None:
        """Make a change, in step with the other ranks of the replica.

        Raises:
            Exception: Whatever a model raises that cannot be loaded.
        """
        self._apply(change, version)
        family = [one.changes.versions for one in self.derivatives if not one.failed]
        failed: list[BaseException] = []
        for each in family:
            try:
                each._apply(change, version)
            except BaseException as error:
                check_interrupt()
                failed.append(error)
                if change == Change.SWAP:
                    each.unload()  # no answer is better than one of the version before
        if failed and change == Change.LOAD:
            for each in (self, *family):
                each.drop()
        if failed:
            raise failed[0]

    def _apply(self, change: int, version: str) -> None:
        steps = {Change.SWAP: self.swap, Change.DROP: self.drop, Change.UNLOAD: self.unload}
        if change == Change.LOAD:
            self.load(version)
        else:
            steps[Change(change)]()

    def load(self, version: str) -> None:
        """Load a version, or only check its name where there is no memory for both."""
        self.drop()
        configured = self._model.configured
        wanted = configured.of_version(version or self._model.current.version)
        beside = configured.reload == "beside"
        self._next = wanted, self._fresh(wanted) if beside else None

    def swap(self) -> None:
        """Answer with the version that was loaded."""
        if self._next is None:
            raise Error(Code.ESTATE, "no version was loaded that could take over")
        (wanted, backend), self._next = self._next, None
        self._model.put(backend or self._in_place(wanted), wanted)

    def drop(self) -> None:
        """Close the version that was loaded, if there is one."""
        if self._next and self._next[1]:
            self._model.let_go(self._next[1])
        self._next = None

    def unload(self) -> None:
        """Close the model."""
        self.drop()
        self._model.unload()

    def _in_place(self, wanted: ServiceConfig) -> Backend:
        """Unload the current version and load another; load the current one again if that fails."""
        self._model.unload()
        self._model.enter_state("loading")
        try:
            return self._fresh(wanted)
        except BaseException:
            check_interrupt()
            before = self._model.current
            self._model.put(self._fresh(before), before)
            raise

    def _fresh(self, service: ServiceConfig) -> Backend:
        named = (service.backend, service.model, service.preprocess, service.postprocess)
        specs = [spec for spec in named if spec and ":" in spec and not service.isolated]
        for module in {module_of(spec, service.folder) for spec in specs}:
            read_again(module)  # a new child has not read them before
        return self._model.load_version(service)


class Changes:
    """Makes the changes of a model that clients request, one at a time.

    Args:
        lib: The session handle of this rank.
        model: The model to change.

    Attributes:
        versions: Loads the versions.
        primal: Of the model of a derivative: the model that it is a derivative of.
        pending: Whether `look` has something to wait for.
    """

    def __init__(self, lib: core.Session, model: ServedModel) -> None:
        self._lib = lib
        self._model = model
        self.versions = Versions(model)
        self.primal: ServedModel | None = None
        self._owner = -1  # the client whose version is loaded, and does not answer yet
        self._request = ChangeRequest(0, 0, -1, "")
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._waiting = False  # for the model to be idle
        self.pending = False

    @property
    def open(self) -> bool:
        """Whether a client's change of the version has begun and not ended."""
        mine = self._thread is not None or self._waiting or self._owner != -1
        return mine or (self.primal is not None and self.primal.changes.open)

    def begin(self, request: ChangeRequest) -> None:
        """Make the change that a client requests, or begin it."""
        if self.primal and request.change in VERSION:
            self._refuse(request, f"reload or unload '{self.primal.service.name}': {BOTH}")
            return
        self._request = request
        if self._owner not in (-1, request.client):
            text = f"rank {self._owner} is changing the version of this service"
            self._refuse(request, text)
        elif request.change == Change.LOAD and self._model.loads_aside:
            self._thread = threading.Thread(target=self._apply, daemon=True)
            self._thread.start()
            self.pending = True
        elif request.change in (Change.SWAP, Change.UNLOAD) and not self._model.idle:
            self._waiting = True  # the broker gives no batch of this service meanwhile
            self.pending = True
        else:
            self._apply()
            self._finish()

    def look(self) -> None:
        """End the change that was begun, if its thread has ended or the model is idle."""
        if self._thread and not self._thread.is_alive():
            self._thread = None
            self.pending = False
            self._finish()
        elif self._waiting and self._model.idle:
            self._waiting = self.pending = False
            self._apply()
            self._finish()

    def follow(self, change: int, version: str) -> None:
        """Make a change on a follower, as its head does."""
        try:
            self.versions.apply(change, version)
        except BaseException:  # the head fails alike, and tells the client
            check_interrupt()

    def _refuse(self, request: ChangeRequest, text: str) -> None:
        # A client that was refused drops a version that this rank never loaded for it.
        code = Code.OK if request.change == Change.DROP else Code.ESTATE
        self._lib.change_reply(request.service, code, text)

    def _apply(self) -> None:
        self._error = None
        try:
            self._model.change_followers(self._request.change, self._request.version)
            self.versions.apply(self._request.change, self._request.version)
        except BaseException as error:
            self._error = error
            check_interrupt()

    def _finish(self) -> None:
        request = self._request
        if request.client == self._owner or request.change == Change.LOAD:
            loaded = request.change == Change.LOAD and self._error is None
            self._owner = request.client if loaded else -1
        if self._error is None:
            self._lib.change_reply(request.service, Code.OK, "")
            return
        self._lib.change_reply(request.service, code_of(self._error), describe(self._error))
