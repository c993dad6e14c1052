"""Check the keys of a service that say how its model is called, against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationInfo

from mpiserve.config import ragged
from mpiserve.config.tensor_checks import check_fixed, free_tensor
from mpiserve.config.values import MAX_BYTES, MAX_WARMUPS, shown

if TYPE_CHECKING:
    from mpiserve.config.service import ServiceConfig

DELAY_US = 200  # the default of max_delay_us, which means more for a reproducible service:
ROUND_US, LEAST_ROUND_US = 60_000_000, 100_000


def check_task_rows(rows: str | None, task: str | None) -> None:
    """Refuse rows that a task cannot have."""
    if rows == "together" and task == "generate":
        raise ValueError(
            "'together' is not possible: the task 'generate' batches sequences of all requests"
        )
    if rows == "none" and task:
        raise ValueError(f"'none' is not possible: the task '{task}' takes rows")


def check_empty(allow_empty: bool, info: ValidationInfo) -> bool:
    """Refuse requests of 0 rows where there are no rows, nor free dimensions."""
    if allow_empty and info.data.get("rows") == "none" and not free_tensor(info.data):
        raise ValueError("true, but there are no rows of which a request may have 0: remove it")
    return allow_empty


def check_on_full(on_full: str, info: ValidationInfo) -> str:
    """Refuse to turn requests away from a queue that has no limit."""
    if on_full == "reject" and not info.data.get("max_queue_rows", 1):
        raise ValueError("'reject' needs max_queue_rows")
    return on_full


def check_fallback(fallback: str | None, info: ValidationInfo) -> str | None:
    """Refuse a local model of clients where a model needs several ranks, or has no fixed shapes."""
    ranks = info.data.get("tensor_parallel", 1)
    if fallback and ranks > 1:
        text = f"'local': a client has no {ranks} ranks for a model (tensor_parallel)"
        raise ValueError(f"{text}: remove one")
    check_fixed(fallback, info.data, "'local': a local model needs fixed shapes")
    return fallback


def check_chunk(chunk_rows: int, info: ValidationInfo) -> int:
    """Refuse calls of some rows where a request is one call."""
    rows = info.data.get("rows")
    if chunk_rows and rows in ("together", "none", "ragged"):
        raise ValueError(f"cuts requests, which rows = '{rows}' excludes; remove one")
    check_fixed(chunk_rows, info.data, "cuts batches")
    return chunk_rows


def check_reproducible(reproducible: bool, info: ValidationInfo) -> bool:
    """Refuse what depends on time."""
    if reproducible and (why := _timed(info.data)):
        raise ValueError(f"true, but {why} depends on time: remove one")
    delay = info.data.get("max_delay_us", DELAY_US)
    if reproducible and delay != DELAY_US and delay < LEAST_ROUND_US:
        text = f"is no time to wait for every rank: at least {LEAST_ROUND_US}, or remove it"
        raise ValueError(f"true, but max_delay_us = {delay} {text}")
    return reproducible


def _timed(service: Mapping[str, Any]) -> str:
    """Say what depends on time, if anything does."""
    if service.get("replicas", 1) > 1:
        return f"which of {service['replicas']} replicas answers"
    if service.get("task") == "generate":
        return "which sequences the task 'generate' continues together"
    if service.get("backend") == "remote" or service.get("remote"):
        return "what a server does (remote)"
    if "autotune" in str(service.get("options", {}).get("compile")):
        return "which kernel is the fastest (options.compile)"
    return "what finds room in the queue (max_queue_rows)" if service.get("max_queue_rows") else ""


def delay_us(service: ServiceConfig) -> int:
    """Return how long a request waits for others."""
    if service.reproducible and service.max_delay_us == DELAY_US:
        return ROUND_US
    return service.max_delay_us


def check_most_rows(rows: int, service: Mapping[str, Any], most: int) -> int:
    """Return the value of `max_batch_rows`, which is `most` if nobody has set it."""
    if service.get("rows") == "none":
        if rows not in (1, most):
            raise ValueError(f"{rows}: with rows = 'none' a batch is one request: remove it")
        rows = 1
    if service.get("rows") == "ragged":
        ragged.check_most(rows, service, most)
    tensors = [*service.get("inputs", ()), *service.get("outputs", ())]
    row = sum(tensor.row_bytes for tensor in tensors)
    if rows * row > MAX_BYTES:
        text = f"{rows} rows of {row} bytes are {rows * row} bytes, at most {MAX_BYTES}"
        raise ValueError(f"{text}: lower it")
    return rows


def warmup_of(warmup: Any, most: int) -> bool | str | tuple[int, ...]:
    """Return the value of `warmup`, for batches of at most so many rows."""
    if isinstance(warmup, bool):
        return warmup
    if isinstance(warmup, str) and warmup.endswith(".npz"):
        return warmup
    if not isinstance(warmup, list) or not all(type(rows) is int for rows in warmup):
        kinds = "true, false, a list of rows or a .npz file"
        raise ValueError(f"must be {kinds}, got {shown(warmup)}")
    if len(warmup) > MAX_WARMUPS:
        raise ValueError(f"at most {MAX_WARMUPS} batches, got {len(warmup)}")
    if not all(0 < rows <= most for rows in warmup):
        raise ValueError(f"rows must be 1 to max_batch_rows, got {shown(warmup)}")
    return tuple(warmup)
