"""Check the tensors of a side of a signature against the rest of the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpiserve.config import ragged
from mpiserve.config.tables import MAX_FREE, MODEL_DTYPES, TensorConfig, Tensors
from mpiserve.config.values import shown, suggest


def check_row_dims(tensors: Tensors, rows: str | None) -> None:
    """Refuse tensors that have rows where the service has none, and others without rows."""
    ragged.check_tensors(tensors, rows)
    for tensor in tensors if rows != "ragged" else ():
        has_rows, said = tensor.has_rows, f"'{tensor.name}' has {list(tensor.shape)}"
        if rows == "none" and has_rows:
            raise ValueError(
                f"{said}: with rows = 'none' a tensor has no dimension of rows, -1; if the first "
                "one is free, max_shape must say how large it can be"
            )
        if rows != "none" and not has_rows:
            raise ValueError(
                f"{said}: the first dimension is the number of rows and must be -1; where tensors "
                "have no rows, set rows = 'none'"
            )
    check_number_free(tensors)


def check_unbounded(tensors: Tensors) -> None:
    """Refuse bounds of values that nobody checks."""
    for tensor in tensors:
        if tensor.min is not None or tensor.max is not None:
            raise ValueError(f"min or max at '{tensor.name}': only values of outputs are checked")


def check_names(tensors: Tensors) -> None:
    """Refuse two tensors of one name."""
    names = [tensor.name for tensor in tensors]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two tensors are named '{name}'")


def check_kept(tensors: Tensors, backend: str) -> None:
    """Refuse conversions that a backend does not do."""
    for tensor in tensors:
        if tensor.convert:
            text = f"convert at '{tensor.name}': the backend '{backend}' converts nothing"
            raise ValueError(f"{text}; preprocess and postprocess can")


def check_number_free(tensors: Tensors) -> None:
    """Refuse more free dimensions than requests can carry."""
    free = sum(
        size != most
        for tensor in tensors
        for size, most in zip(tensor.shape, tensor.largest, strict=True)
    )
    if free > MAX_FREE:
        raise ValueError(f"at most {MAX_FREE} free dimensions, got {free}")


def free_tensor(service: Mapping[str, Any]) -> TensorConfig | None:
    """Return the first tensor with free dimensions, among the keys of a service."""
    tensors = (*service.get("inputs", ()), *service.get("outputs", ()))
    return next((tensor for tensor in tensors if tensor.is_free), None)


def check_fixed(value: object, service: Mapping[str, Any], why: str) -> None:
    """Refuse a value, unless it is false, that needs tensors without free dimensions."""
    if value and (tensor := free_tensor(service)):
        raise ValueError(f"{why}, and '{tensor.name}' has free dimensions: remove one")


def _kind(tensor: TensorConfig) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return tensor.dtype, tensor.shape, tensor.largest


def mirrored(outputs: Tensors, inputs: Tensors) -> Tensors:
    """Return the outputs of echo: its inputs, which may have other names."""
    if not outputs:
        return inputs
    if [_kind(tensor) for tensor in outputs] != [_kind(tensor) for tensor in inputs]:
        raise ValueError("the backend 'echo' returns its inputs: dtypes and shapes must be equal")
    return outputs


def check_model_dtype(dtype: str | None, backend: str | None) -> str | None:
    """Refuse a dtype that no model can be converted to."""
    if dtype is None:
        return None
    if backend in ("onnx", "python", "echo", "remote"):
        raise ValueError(f"the backend '{backend}' converts no model")
    if dtype not in MODEL_DTYPES:
        raise ValueError(f"unknown model dtype {shown(dtype)} {suggest(dtype, MODEL_DTYPES)}")
    return dtype
