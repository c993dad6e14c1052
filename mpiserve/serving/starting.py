"""Start and stop the models of a rank when clients ask, and keep spares until they are needed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mpiserve.errors import Code
from mpiserve.failure import code_of, describe
from mpiserve.serving.absent_model import Absent, Suspended, Unloaded
from mpiserve.serving.adaptive_pool import Loading
from mpiserve.serving.reload import Change, ChangeRequest

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.config.partition import Assignment
    from mpiserve.serving.served_model import ServedModel

logger = logging.getLogger("mpiserve")


class Starting:
    """Starts and stops the models of a rank.

    The rank's `Worker` calls it at start, for each request for a change, in each step while
    something is pending, and at the end.

    Args:
        lib: The session handle of this rank.
        models: The models of all its services.
        assignment: What the rank does.
    """

    def __init__(
        self, lib: core.Session, models: Sequence[ServedModel], assignment: Assignment
    ) -> None:
        self._lib = lib
        self._models = models
        self._assignment = assignment
        self._replaced: set[tuple[int, str]] = set()  # service and dead rank
        self._loading: dict[int, tuple[Loading, ChangeRequest]] = {}
        self._stopping: dict[int, ChangeRequest] = {}
        self._deferred: dict[int, list[ChangeRequest]] = {}  # by what they wait for

    # ---- start and end

    def prepare(self, model: ServedModel) -> dict[str, Any]:
        """Load a model once, so that errors are found now; a cold spare lets it go again."""
        described = model.prepare()
        model.stopped = self._assignment.spare
        if model.stopped and not self._assignment.warm and not model.failed:
            model.suspend()
        return described

    def announce(self) -> None:
        """Log that this rank is a spare; the library has published it as stopped."""
        names = [model.service.name for model in self._models if not model.failed]
        if names and self._assignment.spare and not self._assignment.tp_index:
            kind = "warm" if self._assignment.warm else "cold"
            text = "%s spare %d: serves %s when a replica dies, or a client asks for it"
            logger.info(text, kind, self._assignment.replica, " or ".join(names))

    def end(self) -> None:
        """Let go the models that are still being loaded."""
        for loading, _ in self._loading.values():
            loading.end()

    # ---- what clients ask

    @property
    def pending(self) -> bool:
        """Whether `look` has something to wait for."""
        return bool(self._loading or self._stopping)

    def begin(self, request: ChangeRequest) -> None:
        """Make the change that a client requests, or begin it."""
        model = self._models[request.service]
        # A derivative that is loaded now would otherwise arrive in the version before.
        family = (request.service, *(one.index for one in model.changes.versions.derivatives))
        if loading := [index for index in family if index in self._loading]:
            self._deferred.setdefault(loading[0], []).append(request)
        elif request.change == Change.STOP:
            self._stop(model, request)
        elif request.change in (Change.START, Change.REPLACE):
            self._start(model, request)
        else:
            model.changes.begin(request)

    def look(self) -> None:
        """End what has been begun: models that are loaded, or idle."""
        for index, (loading, request) in [*self._loading.items()]:
            if loading.done:
                del self._loading[index]
                self._arrive(loading, request)
                for request in self._deferred.pop(index, []):
                    self.begin(request)
        for index, request in [*self._stopping.items()]:
            if self._models[index].idle:
                del self._stopping[index]
                self._models[index].suspend()
                self._models[index].enter_state("launched")
                self._reply(request)

    def _start(self, model: ServedModel, request: ChangeRequest) -> None:
        place = (model.index, request.version)
        if request.change == Change.REPLACE and place in self._replaced:
            self._reply(request)
        elif wrong := self._refusal(model, request):
            self._reply(request, Code.ESTATE, wrong)
        elif request.change == Change.REPLACE:
            self._replaced.add(place)
            logger.warning("%s takes the place of rank %s", model.name(), request.version)
            self._resume(model, request)
            self._reply(request)  # nobody waits for the model, and no close of a client has to
        elif model.stopped or isinstance(model.backend, Unloaded):
            self._resume(model, request)
        else:
            self._reply(request)

    def _refusal(self, model: ServedModel, request: ChangeRequest) -> str:
        """Say why a model cannot be started; empty if it can."""
        name = model.service.name
        if request.change == Change.REPLACE and not model.stopped:
            return f"it serves '{name}' already"
        groups = [group.services for group in self._assignment.spared]
        group = next((group for group in groups if model.configured in group), ())
        for other in self._models:
            if group and not other.stopped and other.configured not in group:
                return f"it serves '{other.service.name}'"
        return ""

    def _resume(self, model: ServedModel, request: ChangeRequest) -> None:
        """Take requests, which wait for the model: they may have nowhere else to go."""
        model.stopped = False
        self._lib.set_room(model.index, False)
        self._lib.suspend(model.index, False)
        model.enter_state("loading")
        if isinstance(model.backend, Absent):
            model.suspended = True
            if isinstance(model.backend, Unloaded):
                model.put(Suspended(model.current), model.current)
            self._loading[model.index] = Loading(model), request
        else:
            self._serve(model, request)

    def _arrive(self, loading: Loading, request: ChangeRequest) -> None:
        model, error = loading.model, loading.error
        if loading.backend and error is None:
            model.resume(loading.backend)
            self._serve(model, request)
            return
        text = describe(error) if error else "nothing was loaded"
        logger.error("%s cannot be started: %s", model.name(), text)
        self._suspend(model)
        model.enter_state("launched")
        self._lib.set_room(model.index, True)
        if request.change == Change.START:
            self._reply(request, code_of(error) if error else Code.EMODEL, text)

    def _serve(self, model: ServedModel, request: ChangeRequest) -> None:
        """Give the model the requests that wait."""
        self._lib.set_room(model.index, True)
        model.enter_state("ready")
        if request.change == Change.START:
            self._reply(request)

    def _stop(self, model: ServedModel, request: ChangeRequest) -> None:
        if model.stopped:
            self._reply(request)
        elif wrong := self._unstoppable(model):
            self._reply(request, Code.ESTATE, wrong)
        else:
            self._suspend(model)
            self._stopping[model.index] = request

    def _unstoppable(self, model: ServedModel) -> str:
        """Say why a model cannot be stopped; empty if it can."""
        if self._assignment.pool and self._assignment.pool.loaded:
            return "its adaptive pool starts and stops models by itself"
        if model.service.tensor_parallel > 1:
            return "its model runs on several ranks (tensor_parallel), which stay together"
        if model.changes.open:
            return "the version of its model is being changed"
        return ""

    def _suspend(self, model: ServedModel) -> None:
        model.stopped = True
        self._lib.suspend(model.index, True)

    def _reply(self, request: ChangeRequest, code: int = Code.OK, text: str = "") -> None:
        self._lib.change_reply(request.service, code, text)
