"""Answer in place of a service with a function of the user's, and log why."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpiserve.failure import one_line, text_of

logger = logging.getLogger("mpiserve")

MANY = 20  # distinct causes that are logged
NUMBER = re.compile(r"\d+")


class Fallback:
    """A function that answers rows in place of a service.

    Args:
        service: The name of the service.
        names: The names of its outputs.
        function: Called with an array for each input.
    """

    def __init__(self, service: str, names: Sequence[str], function: Callable[..., Any]) -> None:
        self._service = service
        self._names = list(names)
        self._function = function
        self._seen: set[str] = set()

    def answer(
        self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], rows: int, why: str
    ) -> None:
        """Fill the outputs with what the function makes of the inputs.

        Raises:
            BaseException: Whatever the function raises.
            ValueError: If its results do not fit the outputs.
        """
        self._log(why, f"the fallback {_name_of(self._function)} answers {rows} rows")
        results = self._ordered(self._function(*inputs))
        for name, result, output in zip(self._names, results, outputs, strict=True):
            self._fill(name, np.asarray(result), output)

    def _log(self, cause: str, what: str) -> None:
        """Log each cause once: one at every step would fill the disk. Numbers make none."""
        kind = NUMBER.sub("#", cause)
        if kind in self._seen or len(self._seen) >= MANY:
            return
        self._seen.add(kind)
        logger.warning("service %s: %s: %s", self._service, what, one_line(cause))

    def _ordered(self, result: Any) -> list[Any]:
        if isinstance(result, Mapping):
            if set(result) != set(self._names):
                raise ValueError(f"its outputs must be named {', '.join(self._names)}")
            return [result[name] for name in self._names]
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        if len(results) != len(self._names):
            expected = f"{len(self._names)} outputs ({', '.join(self._names)})"
            raise ValueError(f"it must return {expected}, and returned {len(results)}")
        return results

    def _fill(self, name: str, result: np.ndarray, output: np.ndarray) -> None:
        """Copy a result; a dtype of the same kind is cast, and that is logged."""
        same_kind = np.can_cast(result.dtype, output.dtype, "same_kind")
        if result.shape != output.shape or not same_kind:
            expected = f"expected {output.dtype} {list(output.shape)}"
            raise ValueError(
                f"output '{name}': {expected}, got {result.dtype} {list(result.shape)}"
            )
        if result.dtype != output.dtype:
            what = f"output '{name}' of the fallback is cast to {output.dtype}"
            self._log(f"it is {result.dtype.name}", what)
        output[...] = result


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else text_of(type(function).__name__)
