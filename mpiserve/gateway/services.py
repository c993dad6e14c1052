"""The services of the job, as the gateway's child knows them."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from mpiserve.gateway.tables import LEAST_LIMIT
from mpiserve.wire.open_inference import DATATYPES, numpy_dtype
from mpiserve.wire.open_inference_server import Tensor

ROOM = 64 << 10  # bytes of JSON around the values
VALUE = 28  # bytes of a value in JSON, with what is between two of them


class Service(NamedTuple):
    """One service.

    Attributes:
        number: Its number in messages to the rank.
        name: Its name.
        version: The name of the version.
        engine: What runs it.
        inputs: Its inputs.
        outputs: Its outputs.
        dtypes: The dtypes of its outputs.
        rows: "independent", "together" or "none".
        max_batch_rows: The most rows of a batch.
        allow_empty: Whether requests may have 0 rows.
        lacking: The dtype that the protocol does not have; "" if it has all.
    """

    number: int
    name: str
    version: str
    engine: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    dtypes: tuple[np.dtype[Any], ...]
    rows: str
    max_batch_rows: int
    allow_empty: bool
    lacking: str

    @property
    def merges(self) -> bool:
        """Whether rows of several clients may be one request."""
        return self.rows == "independent" and bool(self.inputs)

    @property
    def most_bytes(self) -> int:
        """The most bytes of the body of a request."""
        values = sum(_values(tensor) for tensor in self.inputs)
        each = max((_itemsize(tensor.datatype) for tensor in self.inputs), default=1)
        return ROOM + max(LEAST_LIMIT, self.max_batch_rows * values * max(VALUE, each))

    def described(self) -> dict[str, Any]:
        """Return what metadata says of it; the last entry is for `mpiserve.connect`."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": f"mpiserve_{self.engine}",
            "inputs": [tensor.described() for tensor in self.inputs],
            "outputs": [tensor.described() for tensor in self.outputs],
            "mpiserve": {
                "rows": self.rows,
                "max_batch_rows": self.max_batch_rows,
                "allow_empty": self.allow_empty,
                "largest_inputs": [list(tensor.most) for tensor in self.inputs],
                "largest_outputs": [list(tensor.most) for tensor in self.outputs],
            },
        }


def _values(tensor: Tensor) -> int:
    """Of a row."""
    return prod(tensor.most[1:] if tensor.most[:1] == (-1,) else tensor.most)


def _itemsize(datatype: str) -> int:
    names = {known: dtype for dtype, known in DATATYPES.items()}
    return numpy_dtype(names.get(datatype, datatype)).itemsize


def read_table(table: dict[str, Any]) -> Service:
    """Read what `tables.table_of` has written."""
    inputs, outputs = table.pop("inputs"), table.pop("outputs")
    unknown = [dtype for _, dtype, *_ in (*inputs, *outputs) if dtype not in DATATYPES]
    return Service(
        **table,
        inputs=tuple(map(_tensor, inputs)),
        outputs=tuple(map(_tensor, outputs)),
        dtypes=tuple(numpy_dtype(dtype) for _, dtype, *_ in outputs),
        lacking=unknown[0] if unknown else "",
    )


def _tensor(entry: list[Any]) -> Tensor:
    name, dtype, shape, most = entry
    return Tensor(name, DATATYPES.get(dtype, dtype), tuple(shape), tuple(most))
