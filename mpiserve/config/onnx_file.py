"""Read the inputs and outputs of an ONNX file: of its protocol buffer, a few fields.

The package onnx would be one more thing to install, and onnxruntime loads the whole model.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from mpiserve.config.model_file import FileSignature, FileTensor, UnreadableError

HOW = "torch.onnx.export(module, (x,), path, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"
# Numbers of fields in onnx.proto.
GRAPH, INITIALIZER, INPUT, OUTPUT = 7, 5, 11, 12
NAME, TYPE, INITIALIZER_NAME = 1, 2, 8
TENSOR, ELEMENT, SHAPE, DIM, DIM_VALUE, DIM_PARAM = 1, 1, 2, 1, 1, 2
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
}

Field = tuple[int, "int | memoryview"]


def read(model: str, path: Path) -> FileSignature:
    """Read the signature of an ONNX file.

    Raises:
        UnreadableError: If an input or an output is no tensor.
        OSError: If the file cannot be read.
    """
    graph = graph_of(path) or []
    try:
        return _signature(model, graph)
    except ValueError:
        text = f"{model} begins as an ONNX file, and cannot be read to its end"
        raise UnreadableError(f"{text}: copy or write it again") from None


def _signature(model: str, graph: list[Field]) -> FileSignature:
    # Before version 4 of the format, weights are inputs too.
    weights = {
        _text(_part(value, INITIALIZER_NAME)) for field, value in graph if field == INITIALIZER
    }
    inputs, outputs = (
        [_tensor(model, value) for field, value in graph if field == wanted]
        for wanted in (INPUT, OUTPUT)
    )
    given = tuple(tensor for tensor in inputs if tensor.name not in weights)
    return FileSignature(model, given, tuple(outputs), by_name=True, how=HOW)


def graph_of(path: Path) -> list[Field] | None:
    """Return the fields of the graph of an ONNX file; None if it is not one.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            graph = _part(memoryview(data), GRAPH)
            fields = list(_fields(graph)) if graph else []
        except ValueError:  # an empty file, or another kind
            return None
    return fields if any(field == OUTPUT for field, _ in fields) else None


def _tensor(model: str, value: int | memoryview) -> FileTensor:
    name = _text(_part(value, NAME))
    tensor = _part(_part(value, TYPE), TENSOR)
    if not tensor:
        text = f"{model}: '{name}' is a sequence or a map, not a tensor"
        raise UnreadableError(f"{text}: write inputs, and the outputs that you need")
    number = next((value for field, value in _fields(tensor) if field == ELEMENT), 0)
    dtype = DTYPES.get(int(number), f"type {number} of ONNX")
    return FileTensor(name, dtype, _dims(_part(tensor, SHAPE)))


def _dims(shape: memoryview | None) -> tuple[int | str, ...] | None:
    if shape is None:
        return None
    return tuple(_dim(value) for field, value in _fields(shape) if field == DIM)


def _dim(value: int | memoryview) -> int | str:
    for field, part in _fields(value):
        if field == DIM_VALUE and isinstance(part, int):
            return part if 0 < part < 2**63 else "?"  # some exporters write 0 or -1 for dynamic
        if field == DIM_PARAM:
            return _text(part) or "?"
    return "?"


def _part(data: int | memoryview | None, wanted: int) -> memoryview | None:
    """Return the last message or text of a field, as readers of protocol buffers must."""
    found = None
    for field, value in _fields(data):
        if field == wanted and isinstance(value, memoryview):
            found = value
    return found


def _text(data: int | memoryview | None) -> str:
    return bytes(data).decode(errors="replace") if isinstance(data, memoryview) else ""


def _fields(data: int | memoryview | None) -> Iterator[Field]:
    """Yield the fields of a message.

    Raises:
        ValueError: If it is not a message.
    """
    if not isinstance(data, memoryview):
        return
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(key & 7, 0)
        if key & 7 == 2:
            size, at = _varint(data, at)
        if not size and key & 7 != 2 or size > len(data) - at:
            raise ValueError("not a message")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    raise ValueError("not a message")
