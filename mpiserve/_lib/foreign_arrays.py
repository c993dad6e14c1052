"""Arrays that are not numpy's own become arrays of numpy without a change, or are refused."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np

from mpiserve.errors import ArgumentError, Code

ADVICE = {
    "O": "convert it to numbers first, as with np.asarray(x, dtype='float32')",
    "V": "give each field as an array of its own",
    "M": "convert it to numbers first, as with .astype('int64')",
    "m": "convert it to numbers first, as with .astype('int64')",
    "U": "see mpiserve.encode_text",
    "S": "see mpiserve.encode_text",
}


def as_input(value: Any, where: str) -> np.ndarray:
    """Make a numpy array of another array; it has the same values, and the same memory if it can.

    Args:
        value: A tensor of torch on the CPU, a masked array, a list, or what numpy or DLPack take.
        where: The beginning of error texts.

    Raises:
        ArgumentError: If it has no values, or none that a host can read.
    """
    if isinstance(value, np.ma.MaskedArray):
        return _unmasked(value, where)
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if is_tensor(value):
        return _of_tensor(_plain(value, where), where)
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return _of_dlpack(value, where)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # a list that is ragged; memory of a device
        raise _wrong(where, f"numpy makes no array of it: {error}") from None
    if array.dtype == object and array.ndim == 0:
        raise _wrong(where, f"a {type(value).__name__} is no array")
    return array


def as_output(value: Any, where: str) -> np.ndarray:
    """View the caller's memory for results.

    Raises:
        ArgumentError: If it is neither an array of numpy nor a tensor, or would hide the results.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise _wrong(where, "it is a masked array, whose mask would stay: give its .data")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if not is_tensor(value):
        text = "must be a writable C-contiguous array, or a tensor of torch, one per output"
        raise ArgumentError(Code.EARG, f"{where} {text}")
    if value.requires_grad:
        raise _wrong(where, "it requires grad, and autograd would not see results: .detach() it")
    plain = _plain(value, where)
    if plain.data_ptr() != value.data_ptr():
        raise _wrong(where, "it is a view that negates or conjugates: give memory of its own")
    return _of_tensor(plain, where)


def advice(dtype: np.dtype) -> str:
    """Say what to do about an array whose dtype cannot be sent."""
    if not dtype.isnative:
        return f"its bytes are in the other order: use .astype('{dtype.newbyteorder('=').name}')"
    return ADVICE.get(dtype.kind, "convert it to the dtype of the signature with .astype()")


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of torch, which is not imported for this."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


def _wrong(where: str, text: str) -> ArgumentError:
    return ArgumentError(Code.EARG, f"{where}: {text}")


def _unmasked(value: np.ma.MaskedArray, where: str) -> np.ndarray:
    count = np.count_nonzero(np.ma.getmask(value))
    if count:
        text = f"{count} of {value.size} values are masked, and a model cannot see a mask"
        raise _wrong(where, f"{text}: use .filled()")
    return np.ma.getdata(value, subok=False)


def _plain(tensor: Any, where: str) -> Any:
    """Take what is not data off a tensor; refuse what has no dense data on this host."""
    torch = sys.modules["torch"]
    if tensor.device.type == "meta":
        raise _wrong(where, "a tensor on the device meta has no data")
    if tensor.device.type != "cpu":
        raise _wrong(where, f"the tensor is on {tensor.device}: move it to the host with .cpu()")
    if tensor.layout is not torch.strided:
        raise _wrong(where, f"the tensor's layout is {tensor.layout}: use .to_dense()")
    if tensor.is_quantized:
        raise _wrong(where, "the tensor is quantized: use .dequantize()")
    return tensor.detach().resolve_conj().resolve_neg()


def _of_tensor(tensor: Any, where: str) -> np.ndarray:
    torch = sys.modules["torch"]
    try:
        if tensor.dtype is torch.bfloat16:  # which numpy by itself does not know
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (RuntimeError, TypeError) as error:
        raise _wrong(where, f"the tensor cannot be read: {str(error).splitlines()[0]}") from error


def _of_dlpack(value: Any, where: str) -> np.ndarray:
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:
        text = f"numpy cannot take this {type(value).__name__}: {error}"
        raise _wrong(where, f"{text}; copy it to the host first") from error
