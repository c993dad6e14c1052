"""The backend `python`: call any Python callable with numpy arrays."""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Backend, full_name, import_object
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import numpy as np


class PythonBackend(Backend):
    """Calls `model = "module:callable"` with one array per input.

    A class is instantiated once, with the options as keyword arguments, and its object is
    called. A function receives the options with every call. An argument `clients` receives the
    world rank of the client of each row.
    """

    known_options = None  # those of the callable
    _call: Callable[..., Any]
    _engine = ""

    @property
    def engine(self) -> str:
        """The name of the callable."""
        return self._engine or super().engine

    def load(self) -> None:
        """Import the callable.

        Raises:
            ModelError: If it cannot be imported or called.
        """
        found = import_object(self.service.model or "", self.service.folder)
        options = self.service.options
        if isinstance(found, type):
            self._call = found(**options)
        else:
            self._call = partial(found, **options) if options else found
        if not callable(self._call):
            raise ModelError(Code.EMODEL, f"'{self.service.model}' is not callable")
        self._engine = full_name(found)
        self.wants_clients = "clients" in arguments_of(self._call)

    def run(self, inputs: tuple[np.ndarray, ...]) -> Any:
        """Call the callable."""
        if self.wants_clients:
            return self._call(*inputs, clients=self.clients)
        return self._call(*inputs)


def arguments_of(function: Callable[..., Any]) -> Collection[str]:
    """Return the arguments of a callable; none if it hides them, as numpy's functions do."""
    try:
        return signature(function).parameters
    except (TypeError, ValueError):
        return ()
