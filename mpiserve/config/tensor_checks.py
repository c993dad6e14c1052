"""Check the tensors of a side of a signature against the rest of the service."""

from __future__ import annotations

from mpiserve.config.tables import Tensors


def check_row_dims(tensors: Tensors, rows: str | None) -> None:
    """Refuse tensors that have rows where the service has none, and others without rows."""
    for tensor in tensors:
        has_rows, said = tensor.shape[:1] == (-1,), f"'{tensor.name}' has {list(tensor.shape)}"
        if rows == "none" and has_rows:
            raise ValueError(f"{said}: with rows = 'none' a tensor has no dimension of rows, -1")
        if rows != "none" and not has_rows:
            raise ValueError(
                f"{said}: the first dimension is the number of rows and must be -1; where tensors "
                "have no rows, set rows = 'none'"
            )


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


def mirrored(outputs: Tensors, inputs: Tensors) -> Tensors:
    """Return the outputs of echo: its inputs, which may have other names."""
    if not outputs:
        return inputs
    if [(t.dtype, t.shape) for t in outputs] != [(t.dtype, t.shape) for t in inputs]:
        raise ValueError("the backend 'echo' returns its inputs: dtypes and shapes must be equal")
    return outputs
