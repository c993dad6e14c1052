"""The Open Inference Protocol, version 2, over HTTP, as a server speaks it.

Requests come as JSON, or in the protocol's binary extension, or with some tensors in either; an
answer has each output as the request wants it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson

from mpiserve.wire.json_body import WireError
from mpiserve.wire.open_inference import DATATYPES, LENGTH, numpy_dtype

EXTENSIONS = ("binary_tensor_data", "statistics", "model_repository")
DTYPES = {datatype: numpy_dtype(dtype) for dtype, datatype in DATATYPES.items()}


class Tensor(NamedTuple):
    """A tensor of a model.

    Attributes:
        name: Its name.
        datatype: The protocol's name of its dtype.
        shape: Its dimensions; -1 for any number.
        most: The same with the largest number for each -1 that is not the rows.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    most: tuple[int, ...]

    def described(self) -> dict[str, Any]:
        """Return what metadata says of it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


class Request(NamedTuple):
    """A request of inference.

    Attributes:
        id: What the client calls it; "" for nothing.
        arrays: The inputs, in the order of the model.
        wanted: The names of the outputs to send, and whether as bytes.
        parameters: Of the request.
    """

    id: str
    arrays: tuple[np.ndarray, ...]
    wanted: tuple[tuple[str, bool], ...]
    parameters: Mapping[str, Any]


def dump(thing: object) -> bytes:
    """Write JSON."""
    return orjson.dumps(thing)


def load(body: bytes | memoryview) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WireError: If it is none.
    """
    try:
        table = orjson.loads(body)
    except ValueError:
        table = _load_slowly(body)
    if not isinstance(table, dict):
        raise WireError("the request is JSON that is no object")
    return table


def _load_slowly(body: bytes | memoryview) -> Any:
    """Also with NaN and Infinity, which clients in Python write."""
    try:
        found = json.loads(bytes(body))
        json.dumps(found, ensure_ascii=False).encode()  # halves of characters are no text
        return found
    except (ValueError, RecursionError) as error:
        raise WireError(f"the request is no JSON: {str(error)[:100]}") from None


def read(
    body: bytes, json_bytes: str | None, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Request:
    """Read a request of inference.

    Args:
        body: The body.
        json_bytes: The header LENGTH; None if the body is JSON alone.
        inputs: Of the model.
        outputs: Of the model.

    Raises:
        WireError: If it is not what the protocol allows, or does not fit the model.
    """
    end = len(body) if json_bytes is None else _length(json_bytes, len(body))
    table = load(memoryview(body)[:end])
    parameters = _table(table, "parameters")
    entries = _entries(table, "inputs", required=bool(inputs))
    arrays = read_inputs(entries, _parts(entries, memoryview(body)[end:]), inputs)
    wanted = read_wanted(_entries(table, "outputs"), outputs, parameters)
    return Request(str(table.get("id", "")), arrays, wanted, parameters)


def _length(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) > most:
        raise WireError(f"{LENGTH} is {text[:40]!r}, of a body of {most} bytes")
    return int(text)


def _table(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = table.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise WireError(f"'{key}' is no object")
    return found


def _entries(table: Mapping[str, Any], key: str, required: bool = False) -> list[dict[str, Any]]:
    found = table.get(key)
    if found is None and not required:
        return []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise WireError(f"'{key}' is no list of objects")
    if not all(isinstance(entry.get("name"), str) for entry in found):
        raise WireError(f"'{key}' has an entry without a name")
    return found


def _parts(entries: list[dict[str, Any]], data: memoryview) -> list[memoryview | None]:
    """Return the bytes of each input behind the JSON; None if its values are in the JSON."""
    parts: list[memoryview | None] = []
    at = 0
    for entry in entries:
        size = _binary_bytes(entry)
        parts.append(None if size is None else data[at : at + size])
        at += size or 0
    if at != len(data):
        raise WireError(f"{len(data)} bytes behind the JSON, of which the inputs have {at}")
    return parts


def read_inputs(
    entries: Sequence[Mapping[str, Any]],
    parts: Sequence[memoryview | None],
    inputs: Sequence[Tensor],
) -> tuple[np.ndarray, ...]:
    """Read the inputs of a request.

    Args:
        entries: The JSON objects of the inputs.
        parts: The bytes of each; None if its values are in the object, as "data".
        inputs: Of the model.

    Returns:
        The arrays in the order of the model, which may be read-only views of the bytes.

    Raises:
        WireError: If they do not fit the model.
    """
    known = {tensor.name: tensor for tensor in inputs}
    found: dict[str, np.ndarray] = {}
    for entry, data in zip(entries, parts, strict=True):
        name = entry["name"]
        if name not in known or name in found:
            what = "is given twice" if name in known else "is none of the model's"
            raise WireError(f"input '{name[:80]}' {what}: {', '.join(known)}")
        if "shared_memory_region" in _table(entry, "parameters"):
            raise WireError(f"input '{name}': shared memory is not supported")
        found[name] = _array(entry, known[name], data)
    if missing := [name for name in known if name not in found]:
        raise WireError(f"input '{missing[0]}' is missing: the model has {', '.join(known)}")
    return tuple(found[tensor.name] for tensor in inputs)


def _binary_bytes(entry: Mapping[str, Any]) -> int | None:
    """The bytes behind the JSON; None if the values are in it."""
    size = _table(entry, "parameters").get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0 or "data" in entry:
        raise WireError(f"input '{entry['name']}': data, or binary_data_size from 0 on")
    return size


def _array(entry: Mapping[str, Any], tensor: Tensor, data: memoryview | None) -> np.ndarray:
    shape = _shape(entry, tensor)
    if entry.get("datatype") != tensor.datatype:
        given = str(entry.get("datatype"))[:40]
        raise WireError(f"input '{tensor.name}' is {tensor.datatype}, and {given} was sent")
    dtype = DTYPES[tensor.datatype]
    if data is None:
        return _from_json(entry.get("data"), tensor, shape, dtype)
    if len(data) != prod(shape) * dtype.itemsize:
        text = f"{len(data)} bytes for {tensor.datatype} {list(shape)}"
        raise WireError(f"input '{tensor.name}': {text}")
    if dtype == np.bool_ and max(data, default=0) > 1:
        raise WireError(f"input '{tensor.name}': a byte of BOOL is neither 0 nor 1")
    return (np.frombuffer(data, dtype) if data else np.zeros(0, dtype)).reshape(shape)


def _shape(entry: Mapping[str, Any], tensor: Tensor) -> tuple[int, ...]:
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(dim) is int and dim >= 0 for dim in shape):
        raise WireError(f"input '{tensor.name}': its shape is no list of numbers from 0 on")
    fits = len(shape) == len(tensor.shape) and all(
        dim == wanted if wanted != -1 else most == -1 or dim <= most
        for dim, wanted, most in zip(shape, tensor.shape, tensor.most, strict=True)
    )
    if not fits:
        most = f", at most {list(tensor.most)}" if tensor.most != tensor.shape else ""
        text = f"the model's shape is {list(tensor.shape)}{most}, and {str(shape)[:80]} was sent"
        raise WireError(f"input '{tensor.name}': {text}")
    return tuple(shape)


def _from_json(
    values: Any, tensor: Tensor, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.ndarray:
    if not isinstance(values, list):
        raise WireError(f"input '{tensor.name}': neither data nor binary_data_size")
    try:
        array = _exact(values, dtype)
    except (TypeError, ValueError, OverflowError):
        text = f"its data are no values of {tensor.datatype}"
        raise WireError(f"input '{tensor.name}': {text}") from None
    if array.size != prod(shape):
        text = f"{array.size} values for the shape {list(shape)}"
        raise WireError(f"input '{tensor.name}': {text}")
    return array.reshape(shape)


def _exact(values: list[Any], dtype: np.dtype[Any]) -> np.ndarray:
    """Convert, but let no number become another one, apart from the rounding of floats."""
    seen = np.array(values)
    if not seen.size:
        return np.zeros(seen.shape, dtype)
    if dtype.kind == "b":
        if seen.dtype.kind == "b" or (seen.dtype.kind in "iu" and set(_flat(values)) <= {0, 1}):
            return seen.astype(dtype)
        raise ValueError
    if dtype.kind in "iu":
        # A mix of large numbers becomes float64.
        if seen.dtype.kind not in "iu" and not all(type(value) is int for value in _flat(values)):
            raise ValueError
        return np.array(values, dtype)
    if seen.dtype.kind not in "iuf":
        raise ValueError
    with np.errstate(over="ignore"):
        made = seen.astype(dtype)
    if (~np.isfinite(made) & np.isfinite(seen.astype(np.float64))).any():
        raise ValueError
    return made


def _flat(values: Any) -> list[Any]:
    if not isinstance(values, list):
        return [values]
    return [each for value in values for each in _flat(value)]


def read_wanted(
    entries: Sequence[Mapping[str, Any]], outputs: Sequence[Tensor], parameters: Mapping[str, Any]
) -> tuple[tuple[str, bool], ...]:
    """Read which outputs a request wants, and whether as bytes; without entries all.

    Raises:
        WireError: If the model has no such output.
    """
    default = bool(parameters.get("binary_data_output", False))
    known = [tensor.name for tensor in outputs]
    if not entries:
        return tuple((name, default) for name in known)
    wanted = {}
    for entry in entries:
        name, options = entry["name"], _table(entry, "parameters")
        if name not in known or name in wanted:
            raise WireError(f"output '{name[:80]}' is not one of {', '.join(known)}, once")
        if "classification" in options or "shared_memory_region" in options:
            raise WireError(f"output '{name}': no classification, and no shared memory")
        wanted[name] = bool(options.get("binary_data", default))
    return tuple(wanted.items())


def build(
    model: str,
    version: str,
    request: Request,
    outputs: Mapping[str, tuple[Tensor, np.ndarray]],
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Make the answer to a request.

    Args:
        model: The name of the model.
        version: Its version.
        request: The request.
        outputs: All outputs, by name.

    Returns:
        The headers and the body.
    """
    entries, parts = [], [b""]
    for name, binary in request.wanted:
        tensor, array = outputs[name]
        entry: dict[str, Any] = {
            "name": name,
            "datatype": tensor.datatype,
            "shape": list(array.shape),
        }
        if binary:
            parts.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": array.nbytes}
        else:
            entry["data"] = _as_json(array)
        entries.append(entry)
    table = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id:
        table["id"] = request.id
    parts[0] = _dump_numbers(table, outputs, request)
    if len(parts) == 1:
        return [(b"content-type", b"application/json")], parts[0]
    headers = [
        (b"content-type", b"application/octet-stream"),
        (LENGTH.lower().encode(), str(len(parts[0])).encode()),
    ]
    return headers, b"".join(parts)


def _as_json(array: np.ndarray) -> list[Any]:
    if array.dtype.name in ("float16", "bfloat16"):
        array = array.astype(np.float32)
    return array.ravel().tolist()


def _dump_numbers(
    table: dict[str, Any], outputs: Mapping[str, tuple[Tensor, np.ndarray]], request: Request
) -> bytes:
    """Write NaN as the clients in Python read it: orjson would write null in silence."""
    in_json = [outputs[name][1] for name, binary in request.wanted if not binary]
    if all(array.dtype.kind in "iub" or np.isfinite(array).all() for array in in_json):
        return orjson.dumps(table)
    return json.dumps(table).encode()


def is_like(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    """Whether the rows of two requests are of equal shapes."""
    return all(x.shape[1:] == y.shape[1:] for x, y in zip(a, b, strict=True))


def cut(array: np.ndarray, rows: Sequence[int]) -> list[np.ndarray]:
    """Cut an array into parts of so many rows."""
    ends = np.cumsum([0, *rows]).tolist()
    return [array[begin:end] for begin, end in pairwise(ends)]
