"""Checks the arguments of a call outside of the job as the library does inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mpiserve.config.tensor import Tensor
from mpiserve.errors import Code, from_code


class Signature(Protocol):
    """What is known of a service."""

    name: str
    inputs: tuple[Tensor, ...]
    largest_inputs: tuple[tuple[int, ...], ...]
    rows: str
    allow_empty: bool


def checked(service: Signature, arrays: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    """Return the inputs in the order of the signature, as C-contiguous arrays.

    Raises:
        ArgumentError, DtypeError: If they do not fit.
    """
    given = _by_name(service, arrays, named)
    inputs = [
        _array(service, tensor, largest, given[tensor.name])
        for tensor, largest in zip(service.inputs, service.largest_inputs, strict=True)
    ]
    if service.rows != "none" and inputs:
        counts = {array.shape[0] for array in inputs}
        if len(counts) > 1:
            _refuse(service, Code.EROWS, f"inputs of {sorted(counts)} rows")
        if counts == {0} and not service.allow_empty:
            _refuse(service, Code.EROWS, "0 rows: the service does not set allow_empty")
    return inputs


def _by_name(service: Signature, arrays: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    names = [tensor.name for tensor in service.inputs]
    if len(arrays) == 1 and isinstance(arrays[0], dict):
        given, twice = {**arrays[0], **named}, arrays[0].keys() & named.keys()
    elif len(arrays) > len(names):
        _refuse(service, Code.ESHAPE, f"{len(arrays)} arrays for inputs {', '.join(names)}")
    else:
        by_position = dict(zip(names, arrays, strict=False))
        given, twice = {**by_position, **named}, by_position.keys() & named.keys()
    if twice:
        _refuse(service, Code.ENAME, f"input '{min(twice)}' is given twice")
    for name in given:
        if name not in names:
            _refuse(service, Code.ENAME, f"no input '{name}'; there is {', '.join(names)}")
    for name in names:
        if name not in given:
            _refuse(service, Code.ENAME, f"input '{name}' is missing")
    return given


def _array(service: Signature, tensor: Tensor, largest: tuple[int, ...], value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.name != tensor.dtype:
        text = f"input '{tensor.name}' is {array.dtype.name}, and {tensor.dtype} is expected"
        _refuse(service, Code.EDTYPE, text)
    fits = array.ndim == len(tensor.shape) and all(
        dim == wanted if wanted != -1 else most == -1 or dim <= most
        for dim, wanted, most in zip(array.shape, tensor.shape, largest, strict=True)
    )
    if not fits:
        text = f"input '{tensor.name}' has shape {list(array.shape)}, and {list(tensor.shape)}"
        _refuse(service, Code.ESHAPE, f"{text} is expected")
    return np.ascontiguousarray(array).reshape(array.shape)


def _refuse(service: Signature, code: Code, text: str) -> None:
    raise from_code(code, f"service '{service.name}': {text}")
