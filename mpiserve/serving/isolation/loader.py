"""Load the versions of a service in child processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mpiserve.backends.base import Backend
from mpiserve.failure import check_interrupt
from mpiserve.serving.isolation.isolated import Isolated
from mpiserve.serving.isolation.server_link import the_server

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.config import ServiceConfig

# torch imports _dynamo late, when warm-up watches what a model writes to: in two seconds.
TORCH = ("torch", "torch._dynamo")
LIBRARIES = {"torch": TORCH, "deepspeed": (*TORCH, "deepspeed")}
DEVICES = ("nvidia[0-9]*", "kfd")  # of GPUs, in /dev


class IsolatedLoader:
    """Loads the versions of a service, each in a child of its own.

    Args:
        lib: The session handle of this rank.
        service: The table of the service.
        local_rank: Position among the inference ranks of this node.
        remark: Called with each remark for the user about a model, in one line.
    """

    def __init__(
        self,
        lib: core.Session,
        service: ServiceConfig,
        local_rank: int,
        remark: Callable[[str], None],
    ) -> None:
        self._lib = lib
        self._local_rank = local_rank
        self._remark = remark
        the_server.load(libraries_of(service), service.threads)
        the_server.start()

    def load(self, service: ServiceConfig, old: Backend | None = None) -> Backend:
        """Load a version and warm it up, beside the version that answers if there is one.

        Raises:
            Error: If it cannot be loaded, with the text of the reason.
        """
        before = (old.tune_result, old.in_c) if isinstance(old, Isolated) else (None, None)
        backend = Isolated(self._lib, service, the_server, self._local_rank, *before)
        try:
            backend.load()
        except BaseException:
            check_interrupt()
            backend.close()
            raise
        for text in backend.remarks:
            self._remark(text)
        return backend


def libraries_of(service: ServiceConfig) -> tuple[str, ...]:
    """Return the large libraries that a service needs, for children to share.

    DeepSpeed chooses its accelerator when it is imported, and a fork cannot use a GPU that its
    parent has used: where there is one, each child imports DeepSpeed itself.
    """
    names = LIBRARIES.get(service.backend, ())
    if any(next(Path("/dev").glob(name), None) for name in DEVICES):
        names = tuple(name for name in names if name in TORCH)
    return (*names, "transformers") if names and service.task else names
