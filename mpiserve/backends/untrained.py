"""What stands in place of a model that has no weights yet."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from mpiserve.backends.arrays import dtype_of
from mpiserve.backends.base import Backend, Native

logger = logging.getLogger("mpiserve")


class Untrained(Backend):
    """Answers that it does not know: all outputs are NaN, the uncertainty among them.

    So no row is trusted, and the fallback of the simulation answers.
    """

    def load(self) -> None:
        """Say what there is not."""
        text = "service %s has no weights yet: its fallback answers until a version is loaded"
        logger.info(text, self.service.name)

    def run(self, inputs: tuple[np.ndarray, ...]) -> list[Any]:
        """Return NaN for each value of each row."""
        outputs, rows = self.service.outputs, len(inputs[0])
        return [np.full(tensor.dims(rows), np.nan, dtype_of(tensor)) for tensor in outputs]

    def compiled(self, build: bool) -> Native | None:
        """Return None: there is no model to compile, which nobody has to be told."""
        return None
