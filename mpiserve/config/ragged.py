"""Check services whose requests have their own numbers of rows: rows = "ragged"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationInfo

from mpiserve.config.tables import TensorConfig, Tensors
from mpiserve.config.values import shown, suggest

BACKENDS = ("onnx", "echo", "remote")  # that take no such batches


def check_rows(rows: str | None, service: Mapping[str, Any]) -> None:
    """Refuse "ragged" where the keys before `rows` exclude it."""
    if rows != "ragged":
        return
    if service.get("backend") in BACKENDS:
        text = "only modules of torch, Python callables and backends of your own take such batches"
        raise ValueError(f"'ragged': the backend '{service['backend']}' does not; {text}")
    for key in ("task", "preprocess", "postprocess"):
        if service.get(key):
            raise ValueError(f"'ragged' is not possible with {key}: remove one of the two")


def check_tensors(tensors: Tensors, rows: str | None) -> None:
    """Refuse named dimensions where rows are not ragged, and dimensions without a name there."""
    most: dict[str, int] = {}
    for tensor in tensors:
        name, said = tensor.dimension, f"'{tensor.name}' has {shown(tensor.said)}"
        if rows != "ragged":
            if name or tensor.index_of:
                raise ValueError(f"{said}: named dimensions and index_of need rows = 'ragged'")
            continue
        if -1 in tensor.shape[1:] or (not name and tensor.shape[:1] == (-1,)):
            raise ValueError(
                f"{said}: with rows = 'ragged' only the first dimension is free, and it has a "
                'name, such as ["nodes", 16]'
            )
        if not name:
            continue
        if tensor.has_rows:
            raise ValueError(f"{said}: max_shape must say how large '{name}' can be")
        if most.setdefault(name, tensor.largest[0]) != tensor.largest[0]:
            text = f"'{name}' is at most {tensor.largest[0]} here and {most[name]} elsewhere"
            raise ValueError(f"{said}: {text}; they are the same rows")


def sizes(tensors: Tensors) -> dict[str, int]:
    """Return the largest size of each named dimension."""
    return {t.dimension: t.largest[0] for t in tensors if t.dimension}


def check_side(tensors: Tensors, info: ValidationInfo) -> None:
    """Refuse dimensions of outputs, and indices, of which no input tells the size."""
    if info.data.get("rows") != "ragged":
        return
    if info.field_name == "inputs":
        if not sizes(tensors):
            text = 'an input needs a dimension with a name, such as shape = ["nodes", 16]'
            raise ValueError(f"with rows = 'ragged' {text}")
        for tensor in tensors:
            _check_known(tensor.index_of, sizes(tensors), f"'{tensor.name}': ")
    else:
        for tensor in tensors:
            _check_output(tensor, sizes(info.data.get("inputs", ())))


def _check_output(tensor: TensorConfig, known: Mapping[str, int]) -> None:
    name = tensor.dimension
    if tensor.index_of:
        raise ValueError(f"'{tensor.name}': index_of is for inputs")
    _check_known(name, known, f"'{tensor.name}': ")
    if name and tensor.largest[0] != known[name]:
        text = f"'{name}' is at most {tensor.largest[0]} here and {known[name]} at an input"
        raise ValueError(f"'{tensor.name}': {text}")


def _check_known(name: str | None, known: Mapping[str, int], what: str = "") -> None:
    if name and name not in known:
        text = f"no input has the dimension {shown(name)} {suggest(name, tuple(known))}"
        raise ValueError(f"{what}{text}")


def check_counts(counts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """Refuse counts of dimensions that there are not."""
    for name in counts:
        _check_known(name, sizes(info.data.get("inputs", ())))
    return counts


def check_split(split: bool, info: ValidationInfo) -> bool:
    """Refuse that one bad request fails the others of its batch."""
    if not split and info.data.get("rows") == "ragged":
        raise ValueError("false: with rows = 'ragged' one bad request would fail a whole batch")
    return split


def check_most(rows: int, service: Mapping[str, Any], unset: int) -> None:
    """Refuse batches whose indices do not fit their dtype, and those of unknown size."""
    if rows >= unset:
        raise ValueError(
            "with rows = 'ragged' it is the most requests of a batch: say how many, below "
            f"{unset}; memory is laid out for as many of the largest"
        )
    inputs = service.get("inputs", ())
    for tensor in inputs:
        if tensor.index_of and not _fits(tensor, rows * sizes(inputs)[tensor.index_of]):
            text = f"batches of {rows} requests have too many {tensor.index_of} for {tensor.dtype}"
            raise ValueError(f"{text}, the dtype of '{tensor.name}': lower it, or use int64")


def _fits(tensor: TensorConfig, size: int) -> bool:
    return size < 2 ** (31 if tensor.dtype == "int32" else 63)
