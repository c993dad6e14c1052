"""Run models on ragged batches: the rows of several requests, each with its own number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends.arrays import checked, dtype_of
from mpiserve.backends.base import Native, ordered
from mpiserve.backends.outer import OuterBackend
from mpiserve.config import TensorConfig
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    from mpiserve.config import ServiceConfig

Arrays = tuple[np.ndarray, ...]
Lengths = Mapping[str, np.ndarray]  # by dimension: its rows in each request


class RaggedBackend(OuterBackend):
    """Gives another backend the rows of all requests, one after the other, and splits its results.

    Its batches have one row for each request, where the tensor lies dense at the beginning, and
    behind the tensors an array [requests, tensors]: the first dimension of each.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._model.together = True  # what it gets must not be cut

    def inner_service(self, service: ServiceConfig) -> ServiceConfig:
        """Return the table of the model, which sees a batch as one large request."""
        most = service.max_batch_rows
        counts = [
            TensorConfig(name=f"{name}_counts", dtype="int64", shape=(-1,), max_shape=(most,))
            for name in service.counts
        ]
        inputs = (*(_of_batch(tensor, most) for tensor in service.inputs), *counts)
        outputs = tuple(_of_batch(tensor, most) for tensor in service.outputs)
        update = {"rows": "none", "max_batch_rows": 1, "inputs": inputs, "outputs": outputs}
        return service.model_copy(update=update)

    def load(self) -> None:
        """Load the model.

        Raises:
            ModelError: If it takes requests one by one, in steps.
        """
        super().load()
        if self._model.steps:
            text = "a model that works in steps takes no ragged batches: remove rows = 'ragged'"
            raise ModelError(Code.EMODEL, text)

    def run_batch(self, inputs: Arrays, outputs: Arrays, done: Callable[[int], None]) -> Arrays:
        """Run the model on a batch.

        Raises:
            ArgumentError: If counts of a request disagree, or an index is out of its range: the
                model does not see the batch then.
        """
        *arrays, counts = inputs
        lengths = _lengths(self.service.inputs, counts)
        given = self._joined(arrays, lengths, len(counts))
        if self.wants_clients:
            self._model.clients = self.clients
        results = ordered(self._model.run(given), self._model.service)
        tensors = zip(self.service.outputs, self._model.service.outputs, strict=True)
        for i, (tensor, inner) in enumerate(tensors):
            result = checked(results[i], inner, dtype_of(inner), None)
            _split(tensor, result, lengths, outputs[i])
        outputs[-1][...] = result_counts(self.service, counts)
        return outputs

    def _joined(self, arrays: Sequence[np.ndarray], lengths: Lengths, requests: int) -> Arrays:
        """Make what the model gets: new arrays, which it may change and keep."""
        ones = np.ones(requests, np.int64)
        joined = []
        for tensor, array in zip(self.service.inputs, arrays, strict=True):
            own = lengths.get(tensor.dimension, ones)
            rows = _concatenated(tensor, array, own)
            if tensor.index_of:
                _shift(tensor, rows, own, lengths[tensor.index_of])
            joined.append(rows)
        return (*joined, *(lengths[name].copy() for name in self.service.counts))

    def compiled(self, build: bool) -> Native | None:
        """Refuse.

        Raises:
            ModelError: Always.
        """
        raise ModelError(Code.EMODEL, "its batches are ragged, which an engine in C does not know")


def _of_batch(tensor: TensorConfig, most: int) -> TensorConfig:
    """Describe a tensor of a batch of at most so many requests."""
    first, *others = tensor.largest if tensor.dimension else (1, *tensor.largest)
    return TensorConfig(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=(-1, *others),
        max_shape=(most * first, *others),
        convert=tensor.convert,
    )


def result_counts(service: ServiceConfig, counts: np.ndarray) -> np.ndarray:
    """Return the first dimension of each output of each request, from those of its inputs.

    Raises:
        ArgumentError: If inputs of a request disagree.
    """
    lengths = _lengths(service.inputs, counts)
    made = np.zeros((len(counts), len(service.outputs)), np.int64)
    for i, tensor in enumerate(service.outputs):
        made[:, i] = lengths.get(tensor.dimension, tensor.shape[0] if tensor.shape else 0)
    return made


def _lengths(tensors: Sequence[TensorConfig], counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows of each request in each dimension, on which its tensors must agree."""
    known: dict[str, tuple[TensorConfig, np.ndarray]] = {}
    for tensor, mine in zip(tensors, counts.T, strict=True):
        if not tensor.dimension:
            continue
        first, theirs = known.setdefault(tensor.dimension, (tensor, mine))
        for request in np.flatnonzero(mine != theirs)[:1]:
            text = f"input '{tensor.name}' has {mine[request]} {tensor.dimension}, and input "
            text += f"'{first.name}' has {theirs[request]}: they are the same rows"
            raise ArgumentError(Code.ESHAPE, text)
    return {name: mine for name, (_, mine) in known.items()}


def _concatenated(tensor: TensorConfig, array: np.ndarray, own: np.ndarray) -> np.ndarray:
    if not tensor.dimension:
        return array.copy()
    return np.concatenate([rows[:count] for rows, count in zip(array, own, strict=True)])


def _shift(tensor: TensorConfig, rows: np.ndarray, own: np.ndarray, size: np.ndarray) -> None:
    """Make row numbers of requests those of the batch, in place.

    Args:
        tensor: The tensor.
        rows: Its rows, of all requests.
        own: How many of them each request has.
        size: How many rows their dimension has in each request.
    """
    each = (-1, *(1,) * (rows.ndim - 1))
    most = size.repeat(own).reshape(each)
    wrong = (rows < 0) | (rows >= most)
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0])
        ends = own.cumsum()
        request = int(np.searchsorted(ends, place[0], side="right"))
        at = [int(place[0] - ends[request] + own[request]), *map(int, place[1:])]
        at = at if tensor.dimension else at[1:]
        text = f"input '{tensor.name}' {at} is {rows[place]}: the request has {size[request]} "
        raise ArgumentError(Code.EARG, f"{text}{tensor.index_of}, numbered from 0")
    rows += (size.cumsum() - size).repeat(own).reshape(each).astype(rows.dtype)


def _split(tensor: TensorConfig, result: np.ndarray, lengths: Lengths, room: np.ndarray) -> None:
    """Copy the rows of each request into its room.

    Raises:
        ModelError: If the model has returned more rows, or fewer.
    """
    own = lengths.get(tensor.dimension)
    expected = len(room) if own is None else int(own.sum())
    if len(result) != expected:
        what = tensor.dimension or "requests"
        text = f"output '{tensor.name}': the batch has {expected} {what}, and got {len(result)}"
        raise ModelError(Code.EMODEL, f"{text} rows")
    if own is None:
        room[...] = result
        return
    for rows, (begin, end) in zip(room, _ranges(own), strict=True):
        rows[: end - begin] = result[begin:end]


def _ranges(own: np.ndarray) -> Iterator[tuple[int, int]]:
    ends = own.cumsum()
    return zip((ends - own).tolist(), ends.tolist(), strict=True)


def batch_of(service: ServiceConfig, requests: Sequence[Arrays]) -> Arrays:
    """Make a batch of requests, as the broker gives it: for warm-up.

    Args:
        service: The service.
        requests: The inputs of each request.
    """
    arrays = []
    for tensor, own in zip(service.inputs, zip(*requests, strict=True), strict=True):
        array = np.zeros(tensor.dims(len(requests)), dtype_of(tensor))
        for request, given in enumerate(own):
            if tensor.dimension:
                array[request, : len(given)] = given
            else:
                array[request] = given
        arrays.append(array)
    counts = [[array.shape[0] if array.ndim else 0 for array in one] for one in requests]
    return (*arrays, np.array(counts, np.int64))
