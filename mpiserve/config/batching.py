"""Check the keys of a service that say how its model is called, against each other."""

from __future__ import annotations

from typing import Any

from mpiserve.config.values import MAX_WARMUPS, shown


def check_task_rows(rows: str | None, task: str | None) -> None:
    """Refuse rows that a task cannot have."""
    if rows == "together" and task == "generate":
        raise ValueError(
            "'together' is not possible: the task 'generate' batches sequences of all requests"
        )
    if rows == "none" and task:
        raise ValueError(f"'none' is not possible: the task '{task}' takes rows")


def check_empty(allow_empty: bool, rows: str | None) -> None:
    """Refuse requests of 0 rows where there are no rows."""
    if allow_empty and rows == "none":
        raise ValueError("true, but there are no rows of which a request may have 0: remove it")


def check_chunk(chunk_rows: int, rows: str | None) -> None:
    """Refuse calls of some rows where a request is one call."""
    if chunk_rows and rows in ("together", "none"):
        raise ValueError(f"cuts requests, which rows = '{rows}' excludes; remove one")


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
