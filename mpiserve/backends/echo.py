"""The backend `echo`: the broker copies inputs to outputs in C."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpiserve.backends.base import Backend, Native, check_options

if TYPE_CHECKING:
    import numpy as np


class EchoBackend(Backend):
    """Answers in C, without Python, to measure the cost of mpiserve itself."""

    known_options: tuple[str, ...] = ()
    native = Native(None)
    overwrites = True

    def load(self) -> None:
        """Refuse options, since there are none."""
        check_options(self.service, self.known_options)

    def run(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Return the inputs, as the broker does in C."""
        return inputs
