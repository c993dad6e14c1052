"""Which engine may execute the model of which service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpiserve.config.values import shown, suggest

ENGINES = {  # and the backends that have them
    "eager": ("torch", "deepspeed"),
    "compiled": ("torch", "deepspeed"),
    "onnx": ("onnx",),
    "deepspeed": ("deepspeed",),
}


def engine_problem(engine: str, service: Mapping[str, Any]) -> str | None:
    """Say why a service cannot have an engine, or return None.

    Args:
        engine: The name of the engine.
        service: The values of its table's keys that were read before.
    """
    if engine == "auto":
        return None
    if engine not in ENGINES:
        return f"unknown engine {shown(engine)} {suggest(engine, ('auto', *ENGINES))}"
    backend = service.get("backend")
    if backend not in ENGINES[engine]:
        return f"the backend '{backend}' has no engine '{engine}'; use 'auto'"
    if engine in ("eager", "compiled") and service.get("tensor_parallel", 1) > 1:
        return f"'{engine}' runs on 1 rank, and tensor_parallel is more"
    if engine == "compiled" and service.get("rows") == "ragged":
        return "'compiled' is not possible with rows = 'ragged'; remove one of the two"
    for key in ("task", "preprocess", "postprocess"):
        if engine == "compiled" and service.get(key):
            return f"'compiled' is not possible with {key}; remove one of the two"
    return None
