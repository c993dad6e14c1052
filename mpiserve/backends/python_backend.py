"""Any Python callable on numpy arrays."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Backend, full_name, import_object
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np


class PythonBackend(Backend):
    """Calls `model = "module:callable"` with one array per input.

    A class is instantiated once, with the options as keyword arguments, and its
    object is called. A function gets the options with every call.
    """

    _call: Callable[..., Any]
    _engine = ""

    @property
    def engine(self) -> str:
        """The callable's own name."""
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

    def run(self, inputs: tuple[np.ndarray, ...]) -> Any:
        """Call it."""
        return self._call(*inputs)
