"""What the rank tells its child of the services; without the packages that the child needs."""

from __future__ import annotations

from math import prod
from typing import Any

from mpiserve.config import ServiceConfig
from mpiserve.config.uncertainty import TRUSTED
from mpiserve.wire.open_inference import numpy_dtype

LEAST_LIMIT = 64 << 20  # bytes that the tensors of a request may have in any case
UNNAMED = "1"  # the version of a model that has no name


def table_of(service: Any, index: int) -> dict[str, Any]:
    """Write a service of a session as a table, for `read_table`."""
    sides = (
        (service.inputs, service.largest_inputs),
        (service.outputs, service.largest_outputs),
    )
    inputs, outputs = (
        [(t.name, t.dtype, list(t.shape), list(most)) for t, most in zip(*side, strict=True)]
        for side in sides
    )
    if service.uncertainty_limit is not None:  # clients outside of the job have no fallback
        shape = [] if service.rows == "none" else [-1]
        outputs.append((TRUSTED, "bool", shape, shape))
    return {
        "number": index,
        "name": service.name,
        "version": service.version or UNNAMED,
        "engine": service.engine,
        "inputs": inputs,
        "outputs": outputs,
        "rows": service.rows,
        "max_batch_rows": service.max_batch_rows,
        "allow_empty": bool(service.allow_empty),
    }


def language_of(service: ServiceConfig) -> dict[str, Any]:
    """Write what the child must know of a language model beside the signature."""
    config = service.of_version()
    folder = config.folder / str(config.model)
    here = config.backend != "remote" and (folder / "config.json").is_file()
    return {
        "task": config.task or "",
        "folder": str(folder.resolve()) if here else "",
        "stop_tokens": config.options.get("stop_tokens"),
    }


def most_bytes(service: Any) -> int:
    """The most bytes of the tensors of a request."""
    row = sum(
        prod(most[1:] if most[:1] == (-1,) else most) * numpy_dtype(tensor.dtype).itemsize
        for tensor, most in zip(service.inputs, service.largest_inputs, strict=True)
    )
    return max(LEAST_LIMIT, row * service.max_batch_rows)
