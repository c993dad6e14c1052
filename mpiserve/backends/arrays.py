"""Make and check arrays that fit a signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpiserve.backends.base import ordered
from mpiserve.config import ServiceConfig, TensorConfig
from mpiserve.errors import Code, ModelError

ALIGN = 64  # bytes, as the broker aligns tensors


def checked(
    output: Any, tensor: TensorConfig, dtype: np.dtype, rows: int | None, what: str = "output"
) -> np.ndarray:
    """Return an output as a contiguous array, if it fits the signature.

    Args:
        output: What a model has returned.
        tensor: The tensor of the signature.
        dtype: Its dtype.
        rows: How many rows it must have; None: it must have no dimension of rows.
        what: What it is, for texts.

    Raises:
        ModelError: With the expected and the actual dtype and shape.
    """
    shape = tensor.dims(rows)
    if tensor.is_free:
        shape = np.shape(output) if tensor.fits(np.shape(output), rows) else shape
    if type(output) is np.ndarray and output.dtype == dtype and output.shape == shape:
        return output if output.flags.c_contiguous else np.ascontiguousarray(output)
    array = np.ascontiguousarray(output)
    if array.dtype == dtype and np.shape(output) == shape:
        return array.reshape(shape)  # a scalar has become an array of one dimension
    most = "at most " if tensor.is_free else ""
    expected = f"expected {tensor.dtype} {most}{list(shape)}"
    got = f"got {array.dtype.name} {list(np.shape(output))}"
    raise ModelError(Code.EMODEL, f"{what} '{tensor.name}': {expected}, {got}")


def finished(result: Any, service: ServiceConfig, rows: int) -> list[np.ndarray]:
    """Return what a model has returned for a batch as arrays that fit the signature.

    Raises:
        ModelError: If it does not fit.
    """
    if service.rows == "ragged":  # its backend has checked them
        return list(result)
    return [
        checked(array, tensor, dtype_of(tensor), rows)
        for array, tensor in zip(ordered(result, service), service.outputs, strict=True)
    ]


def cast(source: np.ndarray, target: np.ndarray, what: str) -> None:
    """Copy floating numbers into an array of another floating dtype, in one pass.

    They are rounded to nearest. Infinity and NaN stay what they are, and numbers below the
    smallest of the target become 0.

    Args:
        source: Real or complex numbers.
        target: An array of that shape; numbers of the same kind.
        what: The beginning of error texts.

    Raises:
        ModelError: If a finite number becomes infinite.
    """
    try:
        # The processor notes an overflow while it converts: nothing looks at the numbers again.
        with np.errstate(over="raise", under="ignore", invalid="ignore"):
            np.copyto(target, source, casting="unsafe")
    except FloatingPointError:
        raise _too_large(source, target.real.dtype, what) from None
    # ml_dtypes rounds to bfloat16 with integers, which the processor notes nothing of.
    if target.dtype.name == "bfloat16" and _has_become_infinite(source, target):
        raise _too_large(source, target.real.dtype, what)


def _has_become_infinite(source: np.ndarray, target: np.ndarray) -> bool:
    return bool((~np.isfinite(target) & np.isfinite(source)).any())


def _too_large(source: np.ndarray, dtype: np.dtype, what: str) -> ModelError:
    return ModelError(Code.EMODEL, f"{what}: {_beyond(source, dtype)}")


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def _beyond(source: np.ndarray, dtype: np.dtype) -> str:
    """Name the first number of a source that is infinite in another dtype."""
    limit = f"{dtype.name} ends at {_largest(dtype):.1e}"
    for row, values in enumerate(np.atleast_1d(source)):
        for part in (values.real, values.imag):
            lost = np.isfinite(part) & ~np.isfinite(part.astype(dtype))
            if lost.any():
                return f"row {row} has {float(part[lost].flat[0]):g}, and {limit}"
    return limit


def _largest(dtype: np.dtype) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).max)


def zeros(tensors: Sequence[TensorConfig], rows: int | None) -> tuple[np.ndarray, ...]:
    """Make arrays of zeros for a batch of `rows` rows; None: without a dimension of rows.

    Free dimensions are the largest.
    """
    return tuple(np.zeros(tensor.dims(rows), dtype_of(tensor)) for tensor in tensors)


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a copy aligned as the broker's tensors: how a model rounds may depend on it."""
    memory = np.empty(array.nbytes + ALIGN, np.uint8)
    begin = -memory.ctypes.data % ALIGN
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def room_for(service: ServiceConfig, rows: int) -> tuple[np.ndarray, ...]:
    """Make arrays for the outputs of a batch; of a ragged service with their first dimensions."""
    room = zeros(service.outputs, rows)
    if service.rows == "ragged":
        return (*room, np.zeros((rows, len(room)), np.int64))
    return room


def dtype_of(tensor: TensorConfig) -> np.dtype:
    """Return the numpy dtype of a tensor."""
    if tensor.dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(tensor.dtype)
