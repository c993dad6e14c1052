"""Make and check arrays that fit a signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpiserve.config import TensorConfig
from mpiserve.errors import Code, ModelError


def checked(
    output: Any, tensor: TensorConfig, dtype: np.dtype, rows: int, what: str = "output"
) -> np.ndarray:
    """Return an output as a contiguous array, if it fits the signature.

    Raises:
        ModelError: With the expected and the actual dtype and shape.
    """
    shape = (rows, *tensor.shape[1:])
    if type(output) is np.ndarray and output.dtype == dtype and output.shape == shape:
        return output if output.flags.c_contiguous else np.ascontiguousarray(output)
    array = np.ascontiguousarray(output)
    if array.dtype == dtype and np.shape(output) == shape:
        return array
    expected = f"expected {tensor.dtype} {list(shape)}"
    got = f"got {array.dtype.name} {list(np.shape(output))}"
    raise ModelError(Code.EMODEL, f"{what} '{tensor.name}': {expected}, {got}")


def zeros(tensors: Sequence[TensorConfig], rows: int) -> tuple[np.ndarray, ...]:
    """Make arrays of zeros for a batch of `rows` rows."""
    return tuple(np.zeros((rows, *tensor.shape[1:]), dtype_of(tensor)) for tensor in tensors)


def dtype_of(tensor: TensorConfig) -> np.dtype:
    """Return the numpy dtype of a tensor."""
    if tensor.dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(tensor.dtype)
