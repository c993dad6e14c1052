"""Types of the Cython module; its docstrings are in engine.pyx."""

from collections.abc import Sequence

import numpy as np

from mpiserve.config.tensor import Tensor

class Engine:
    chunk_rows: int
    def __init__(
        self,
        library: str | None,
        model: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        max_batch_rows: int,
        chunk_rows: int = 0,
    ) -> None: ...
    @property
    def address(self) -> int: ...
    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None: ...

class Forward(Engine):
    def __init__(self, function: int, state: int, owner: object) -> None: ...
