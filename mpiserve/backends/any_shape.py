"""Run models whose tensors have free dimensions: each batch has its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Native
from mpiserve.backends.outer import OuterBackend
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    import numpy as np

Arrays = tuple["np.ndarray", ...]


class AnyShapeBackend(OuterBackend):
    """Has another backend return its results, whose dimensions nobody knows before.

    Engines in C are not told dimensions, so there is none, and nothing is tuned by size.
    """

    def load(self) -> None:
        """Load the model.

        Raises:
            ModelError: If it takes requests one by one, in steps.
        """
        super().load()
        if self._model.steps:
            text = "a model that works in steps has fixed shapes: remove max_shape"
            raise ModelError(Code.EMODEL, text)

    def run(self, inputs: Arrays) -> Any:
        """Run the model on one batch."""
        return self._informed().run(inputs)

    def writes(self, inputs: Arrays) -> bool:
        """Return whether the model writes to its inputs."""
        return self._model.writes(inputs)

    def compiled(self, build: bool) -> Native | None:
        """Refuse.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            Code.EMODEL, "its tensors have free dimensions, which an engine in C is not told"
        )
