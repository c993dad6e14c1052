"""Have the library run a model by an engine in C: one that was chosen at warm-up, or later."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mpiserve.backends.base import Backend, Native
from mpiserve.config.environment import number
from mpiserve.failure import check_interrupt, describe
from mpiserve.serving import engines
from mpiserve.serving.isolation.compilation import Compilation
from mpiserve.serving.isolation.isolated import Isolated
from mpiserve.serving.loading import Known
from mpiserve.serving.warmup import examples

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve._lib.engine import Engine
    from mpiserve.serving.isolation.process import ChildProcess
    from mpiserve.serving.served_model import ServedModel

logger = logging.getLogger("mpiserve")

NONE_YET = "the cache has no compiled engine of it (mpiserve compile makes one)"


class InC:
    """What the library knows of a model's engine in C.

    Args:
        lib: The session handle of this rank.
        model: The model.
        local_rank: Position among the inference ranks of this node.
    """

    def __init__(self, lib: core.Session, model: ServedModel, local_rank: int) -> None:
        self._lib = lib
        self._model = model
        self._local_rank = local_rank
        self._warned = False
        self._engine: Engine | None = None
        self._child: ChildProcess | None = None  # to which the library hands batches over
        self._compilation: Compilation | None = None

    def enter(self) -> None:
        """Have the library run the batches of a model that begins to answer, if it can.

        If none has been compiled, another process compiles one meanwhile.

        Raises:
            ModelError: If the engine cannot be loaded: then batches come to the caller.
        """
        self._use()
        backend, model = self._model.backend, self._model
        if not backend.to_compile:
            return
        can_change = not model.assignment.pool and (model.sole or backend.service.isolated)
        if can_change and number("MPISERVE_COMPILE", 1.0):
            self._compile(backend)
        else:
            why = (backend.service.name, engines.engine_of(backend), NONE_YET)
            logger.info("service %s is run by %s: %s", *why)

    def leave(self) -> None:
        """Compile no more: the model answers no more."""
        compilation, self._compilation = self._compilation, None
        if compilation:
            compilation.close()

    def look(self) -> bool:
        """Change the engine, between two batches, if a better one is there now, or a new child.

        Returns:
            Whether the model is run by another engine now.
        """
        compilation, backend = self._compilation, self._model.backend
        if self._child_to_use() is not self._child:
            self._use()
        if not compilation or backend.unavailable or not compilation.ended():
            return False
        self._compilation, backend.to_compile = None, ""
        try:
            native = compilation.result()
            self._adopt(backend, native)
        except BaseException as error:
            check_interrupt()
            name, why = backend.service.name, describe(error)
            logger.warning("service %s stays with the engine in Python: %s", name, why)
            return False
        return native is not None

    def warn(self, failure: str) -> None:
        """Log that the engine failed on a batch, which Python runs now; only the first time.

        Not if the library hands batches over to a child: some are Python's to hand over, such as
        those that a client on another node has put into the window of MPI.
        """
        if not self._warned and not self._child:
            self._warned = True
            name = self._model.service.name
            logger.warning("service %s: %s: %s", name, engines.FAILED, failure)

    def _use(self) -> None:
        """Have the library use the engine of the model, or hand batches over to its child."""
        backend, before = self._model.backend, self._engine
        self._child, self._engine = self._child_to_use(), None
        if before:
            self._lib.set_engine(self._model.index, None)
        if self._child:
            self._engine = self._forward(self._child)
        elif backend.native and self._model.sole:
            engines.limit_threads(backend.service.threads)  # of libraries that come with it
            self._engine = engines.load(backend.native, backend.service)
        if self._engine:
            self._lib.set_engine(self._model.index, self._engine)

    def _child_to_use(self) -> ChildProcess | None:
        """Return the process that gets batches from the library, without Python of this rank."""
        model, backend = self._model, self._model.backend
        if not model.sole or backend.native:
            return None
        return backend.forwards_to

    def _forward(self, child: ChildProcess) -> Engine:
        _, address, size = self._lib.segments()[0]
        service = self._model.service
        return child.forward(len(service.inputs), len(service.outputs), address, size)

    def _compile(self, backend: Backend) -> None:
        known = backend.known if isinstance(backend, Isolated) else None
        if known is None:
            found = (backend.together, backend.copies, backend.tune_result)
            known = Known(*found, native=None)
        args = (backend.service, self._local_rank, known, backend.to_compile)
        self._compilation = Compilation(*args)

    def _adopt(self, backend: Backend, native: Native | None) -> None:
        if isinstance(backend, Isolated):
            backend.in_c = native is not None
        if native is None:
            return
        if isinstance(backend, Isolated):
            backend.adopt(native)
        else:
            service = backend.service
            engines.verify(backend, native, service, examples(service))
            backend.native = native
        self._use()
        logger.info("service %s is answered by the engine in C now", backend.service.name)
