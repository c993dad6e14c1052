"""Warm up a ragged model, and look whether its answer to a request depends on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpiserve.backends.arrays import dtype_of
from mpiserve.backends.ragged import batch_of
from mpiserve.config import TensorConfig
from mpiserve.config.ragged import sizes
from mpiserve.errors import Code, ModelError
from mpiserve.failure import check_interrupt
from mpiserve.serving.model_probe import GROSS, SEED, Arrays, reals

if TYPE_CHECKING:
    from mpiserve.config import ServiceConfig

SIZES = (5, 2, 7)  # rows of the random requests, in their first dimension; more in the others
Run = Callable[[Arrays], Sequence[np.ndarray]]


def look(service: ServiceConfig, rows: Callable[[int], Arrays], run: Run) -> None:
    """Run the batches of warm-up; compare random requests alone and in one batch.

    Args:
        service: The service.
        rows: Makes the batch of warm-up of so many requests.
        run: Runs the model on a batch.

    Raises:
        ModelError: If the answers differ by more than rounding.
        Exception: Any exception of the model on the batches of warm-up.
    """
    for number in service.warmup_rows:
        run(rows(number))
    if not service.warmup_rows or service.max_batch_rows == 1:
        return
    requests = _random(service)
    try:
        alone, again = ([run(batch_of(service, [one])) for one in requests] for _ in range(2))
        together = run(batch_of(service, requests))
    except BaseException:  # such requests are none of the model's
        check_interrupt()
        return
    for i, one in enumerate(alone):
        _compare(service, i, one, again[i], together)


def largest(service: ServiceConfig, example: Arrays | None, number: int) -> Arrays:
    """Make the batch of warm-up of so many requests: of the largest, or of the example."""
    if example:
        return batch_of(service, number * [tuple(array[0] for array in example)])
    one = tuple(np.zeros(tensor.largest, dtype_of(tensor)) for tensor in service.inputs)
    return batch_of(service, number * [one])


def _random(service: ServiceConfig) -> list[Arrays]:
    random, most = np.random.default_rng(SEED), sizes(service.inputs)
    requests = []
    for size in SIZES[: service.max_batch_rows]:
        own = {name: min(most[name], size + 3 * i) for i, name in enumerate(most)}
        requests.append(tuple(_filled(tensor, own, random) for tensor in service.inputs))
    return requests


def _filled(tensor: TensorConfig, own: dict[str, int], random: np.random.Generator) -> np.ndarray:
    shape = (own[tensor.dimension], *tensor.shape[1:]) if tensor.dimension else tensor.shape
    if tensor.index_of:
        return _indices(shape, own[tensor.index_of], random).astype(tensor.dtype)
    dtype = dtype_of(tensor)
    values = random.integers(0, 2, shape) if dtype.kind in "biu" else random.standard_normal(shape)
    return np.asarray(values).astype(dtype)


def _indices(shape: tuple[int, ...], rows: int, random: np.random.Generator) -> np.ndarray:
    """Draw indices of rows; no edge leads from a row to itself, if there is another one.

    The derivative of a distance is not finite there, which models need not expect.
    """
    if len(shape) == 1:
        return random.integers(0, rows, shape)
    steps = random.integers(1, max(2, rows), shape)
    steps[..., 0] = random.integers(0, rows, shape[:-1])
    return np.asarray(np.cumsum(steps, -1) % rows)


def _compare(
    service: ServiceConfig,
    request: int,
    alone: Sequence[np.ndarray],
    again: Sequence[np.ndarray],
    together: Sequence[np.ndarray],
) -> None:
    for i, tensor in enumerate(service.outputs):
        count = int(alone[-1][0, i]) if tensor.dimension else None
        one, same, other = (
            np.asarray(array[row][:count] if tensor.dimension else array[row])
            for array, row in ((alone[i], 0), (again[i], 0), (together[i], request))
        )
        if _apart(one, same) or not _apart(one, other):  # a random model has no right answer
            continue
        text = f"service.{service.name}.rows: 'ragged', but the answer to a request depends on "
        text += f"the others in its batch (output '{tensor.name}'): the model must keep the rows "
        raise ModelError(Code.EMODEL, f"{text}of each request apart; set rows = 'none'")


def _apart(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two results differ by more than rounding, or where they are finite."""
    if one.dtype.kind in "biu":
        return not np.array_equal(one, other)
    a, b = reals(one), reals(other)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return True
    a, b = a[finite], b[finite]
    scale = np.max(np.abs(a), initial=0.0)
    return bool(np.max(np.abs(a - b), initial=0.0) > GROSS * scale)
