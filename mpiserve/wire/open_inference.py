"""The Open Inference Protocol, version 2, over HTTP: requests of inference and their answers.

Tensors travel in the protocol's binary extension: JSON that describes them, then their bytes, one
after the other, little-endian and without gaps. Answers may have them in the JSON, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from mpiserve.wire.json_body import WireError, read_table

LENGTH = "Inference-Header-Content-Length"  # bytes of the JSON before the tensors
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}


class Described(NamedTuple):
    """A tensor, as a server describes it.

    Attributes:
        name: Its name.
        datatype: The protocol's name of its dtype.
        shape: Its dimensions; -1 for any number.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class Metadata(NamedTuple):
    """What a server says of a model.

    Attributes:
        inputs: The inputs of the model.
        outputs: The outputs of the model.
    """

    inputs: tuple[Described, ...]
    outputs: tuple[Described, ...]


def model_path(model: str) -> str:
    """Return the path of a model at a server, "name" or "name/versions/version"."""
    return f"/v2/models/{model}"


def metadata(body: bytes) -> Metadata:
    """Read what a server says of a model.

    Raises:
        WireError: If it is not what the protocol allows.
    """
    table = read_table(body)
    return Metadata(_described(table, "inputs"), _described(table, "outputs"))


def _described(table: Mapping[str, Any], what: str) -> tuple[Described, ...]:
    try:
        return tuple(
            Described(str(entry["name"]), str(entry["datatype"]), tuple(map(int, entry["shape"])))
            for entry in table[what]
        )
    except (KeyError, TypeError, ValueError):
        raise WireError(f"no list of {what} with name, datatype and shape") from None


def request(
    inputs: Iterable[tuple[str, np.ndarray]], outputs: Iterable[str]
) -> tuple[dict[str, str], bytes]:
    """Make a request of inference.

    Args:
        inputs: Names and arrays, whose dtypes the protocol has.
        outputs: The names of the outputs that the server is to send.

    Returns:
        The headers and the body of a POST.
    """
    entries, parts = [], [b""]
    for name, array in inputs:
        data = array.tobytes()
        parts.append(data)
        entries.append(
            {
                "name": name,
                "shape": array.shape,
                "datatype": DATATYPES[array.dtype.name],
                "parameters": {"binary_data_size": len(data)},
            }
        )
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    parts[0] = json.dumps({"inputs": entries, "outputs": wanted}).encode()
    headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(parts[0]))}
    return headers, b"".join(parts)


def response(
    body: bytes, json_bytes: str | None, dtypes: Mapping[str, np.dtype]
) -> dict[str, np.ndarray]:
    """Read the answer to a request of inference.

    Args:
        body: The body.
        json_bytes: The header LENGTH; None if the body is JSON alone.
        dtypes: The dtypes of the outputs that were asked for, by name.

    Returns:
        The outputs, by name. They may be read-only views of the body.

    Raises:
        WireError: If the answer is not what the protocol allows, or not what was asked for.
    """
    end = len(body) if json_bytes is None else _length(json_bytes, len(body))
    entries = read_table(body[:end]).get("outputs")
    if not isinstance(entries, list):
        raise WireError("an answer without outputs")
    results, at = {}, end
    for entry in entries:
        name, shape, size = _entry(entry)
        if name in dtypes:
            results[name] = _array(entry, shape, dtypes[name], body[at : at + size])
        at += size
    if missing := dtypes.keys() - results.keys():
        raise WireError(f"an answer without the output {min(missing)}")
    return results


def _length(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise WireError(f"{LENGTH} is {text[:40]!r}, of a body of {most} bytes")
    return int(text)


def _entry(entry: Any) -> tuple[str, tuple[int, ...], int]:
    """Return name, shape and the bytes behind the JSON of an output."""
    try:
        name, shape = str(entry["name"]), tuple(map(int, entry["shape"]))
        size = int((entry.get("parameters") or {}).get("binary_data_size", 0))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WireError("an output without name and shape") from None
    if size < 0 or any(dim < 0 for dim in shape):
        raise WireError(f"output {name}: a negative size")
    return name, shape, size


def _array(
    entry: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype, data: bytes
) -> np.ndarray:
    name, datatype = entry["name"], DATATYPES[dtype.name]
    if entry.get("datatype") != datatype:
        raise WireError(f"output {name}: {entry.get('datatype')} where {datatype} is expected")
    if "data" in entry:
        return _from_list(name, entry["data"], shape, dtype)
    if len(data) != prod(shape) * dtype.itemsize:
        raise WireError(f"output {name}: {len(data)} bytes for {datatype} {list(shape)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _from_list(name: str, values: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        return np.asarray(values).astype(dtype).reshape(shape)
    except (TypeError, ValueError, OverflowError):
        raise WireError(f"output {name}: its data is no array of {list(shape)}") from None


def mismatch(
    described: Sequence[Described], tensors: Sequence[tuple[str, str, tuple[int, ...]]], what: str
) -> str | None:
    """Say why tensors of a signature are not those of a model, or return None.

    Args:
        described: The model's.
        tensors: Names, dtypes and shapes of the signature, -1 for any number.
        what: "inputs" or "outputs", for the text.
    """
    theirs = {tensor.name: tensor for tensor in described}
    for name, dtype, shape in tensors:
        other = theirs.get(name)
        if other is None:
            return f"the model has no {what[:-1]} '{name}'; its {what} are {', '.join(theirs)}"
        if DATATYPES.get(dtype) != other.datatype or not _fits(shape, other.shape):
            known = DTYPES.get(other.datatype, other.datatype)
            here = f"{dtype} {list(shape)} in the signature"
            return f"'{name}' is {here}, and {known} {list(other.shape)} at the server"
    if what == "inputs" and (unknown := theirs.keys() - {name for name, *_ in tensors}):
        return f"the model has an input '{min(unknown)}' that the signature has not"
    return None


def _fits(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(shape) == len(other) and all(
        -1 in (mine, theirs) or mine == theirs for mine, theirs in zip(shape, other, strict=True)
    )
