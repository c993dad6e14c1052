"""The Open Inference Protocol, version 2, by gRPC, as a server speaks it.

What a message says of its tensors is the same as in the JSON of HTTP, and is read by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from mpiserve.wire.json_body import WireError
from mpiserve.wire.open_inference_messages import DATA_TYPES, message
from mpiserve.wire.open_inference_server import Request, Tensor, read_inputs, read_wanted

CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
InferResponse = message("ModelInferResponse")


def decode(kind: Any, data: bytes) -> Any:
    """Read a message.

    Raises:
        WireError: If the bytes are none of this kind.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise WireError(f"the request is no message: {str(error)[:100]}") from None


def read(asked: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Request:
    """Read a request of inference.

    Args:
        asked: The message ModelInferRequest.
        inputs: Of the model.
        outputs: Of the model.

    Raises:
        WireError: If it is not what the protocol allows, or does not fit the model.
    """
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        text = f"raw_input_contents has {len(raw)} entries for {len(asked.inputs)} inputs"
        raise WireError(text)
    entries = [_entry(tensor, is_raw=bool(raw)) for tensor in asked.inputs]
    parts: list[memoryview | None] = [memoryview(part) for part in raw]
    parts = parts or [None] * len(entries)
    wanted = [
        {"name": each.name, "parameters": parameters(each.parameters)} for each in asked.outputs
    ]
    return Request(
        asked.id,
        read_inputs(entries, parts, inputs),
        read_wanted(wanted, outputs, {}),
        parameters(asked.parameters),
    )


def parameters(entries: Any) -> dict[str, Any]:
    """Return parameters as they are in JSON."""
    return {
        entry.key: getattr(entry.value, entry.value.WhichOneof("choice") or "", None)
        for entry in entries
    }


def _entry(tensor: Any, *, is_raw: bool) -> dict[str, Any]:
    entry = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": parameters(tensor.parameters),
    }
    given = [field.name for field, _ in tensor.contents.ListFields()]
    if is_raw:
        if given:
            raise WireError(f"input '{tensor.name[:80]}': contents beside raw_input_contents")
        return entry
    field = CONTENTS.get(tensor.datatype)
    if field is None or given not in ([], [field]):
        where = field or "raw_input_contents"
        text = f"values of {tensor.datatype[:40]} belong into {where}"
        raise WireError(f"input '{tensor.name[:80]}': {text}")
    return entry | {"data": list(getattr(tensor.contents, field))}


def build(
    model: str, version: str, request: Request, outputs: Mapping[str, tuple[Tensor, np.ndarray]]
) -> Any:
    """Make the answer to a request, the message ModelInferResponse.

    Args:
        model: The name of the model.
        version: Its version.
        request: The request.
        outputs: All outputs, by name.
    """
    sent = [outputs[name] for name, _ in request.wanted]
    return InferResponse(
        model_name=model,
        model_version=version,
        id=request.id,
        outputs=[tensor.described() | {"shape": array.shape} for tensor, array in sent],
        raw_output_contents=[array.tobytes() for _, array in sent],
    )


def configured(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's configuration, as in JSON, with the numbers of its data types."""
    sides = {
        side: [
            tensor | {"data_type": DATA_TYPES.index(tensor["data_type"])} for tensor in table[side]
        ]
        for side in ("input", "output")
    }
    return {**table, **sides}
