"""The keys of a service that keeps answers: which services may, and what is equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo

from mpiserve.config.tables import COMPLEX_DTYPES, MODEL_DTYPES
from mpiserve.config.tensor_checks import check_fixed
from mpiserve.config.values import MAX_BYTES

LEAST_STEP = 1e-300  # so that all multiples of it are normal numbers


def _check_rows(rows: int, info: ValidationInfo) -> int:
    """Refuse services whose answers cannot be kept by row, or must not be."""
    service = info.data
    if not rows:
        return rows
    if why := _excluded(service):
        raise ValueError(f"{rows}, but {why}: remove one")
    check_fixed(rows, service, f"{rows}: rows that are kept have fixed shapes")
    tensors = [*service.get("inputs", ()), *service.get("outputs", ())]
    bytes_ = rows * sum(tensor.row_bytes for tensor in tensors)
    if bytes_ > MAX_BYTES:
        raise ValueError(f"{rows} rows are {bytes_} bytes, at most {MAX_BYTES}: lower it")
    return rows


def _excluded(service: Mapping[str, Any]) -> str:
    """Say what keeping answers excludes, if anything does."""
    if service.get("rows") in ("together", "none", "ragged"):
        return f"only independent rows are kept, and rows = '{service['rows']}'"
    if service.get("task") == "generate":
        return "the task 'generate' answers in steps"
    if service.get("backend") == "remote" or service.get("remote"):
        return "the model of a server may change without notice (remote)"
    if service.get("backend") == "echo":
        return "echo has nothing to save"
    if service.get("reproducible"):
        return "what is kept depends on time (reproducible)"
    return ""


def _check_step(step: float, info: ValidationInfo) -> float:
    """Refuse a step that nothing is compared with."""
    if not step:
        return step
    if not info.data.get("cache_rows", 1):
        raise ValueError(f"{step:g} needs cache_rows")
    inputs = info.data.get("inputs", ())
    if inputs and not any(tensor.dtype in (*MODEL_DTYPES, *COMPLEX_DTYPES) for tensor in inputs):
        raise ValueError(f"{step:g}, but no input has floating numbers: remove it")
    if step < LEAST_STEP:
        raise ValueError(f"{step:g} is below {LEAST_STEP:g}")
    return step


CacheRows = Annotated[int, Field(ge=0, lt=2**31), AfterValidator(_check_rows)]
CacheStep = Annotated[float, Field(ge=0), AfterValidator(_check_step)]
