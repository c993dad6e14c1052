"""Say how far the inputs of a model are from those that it was trained with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from mpiserve.backends.arrays import dtype_of
from mpiserve.backends.base import Backend, ordered
from mpiserve.backends.outer import OuterBackend
from mpiserve.config.uncertainty import seen
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from mpiserve.config import ServiceConfig

ENOUGH = 10_000  # training rows of which the distances to others are measured
SHARE = 0.99  # of these rows are as near to others as 1

logger = logging.getLogger("mpiserve")


class DistanceBackend(OuterBackend):
    """Runs a model, and returns the distance of each row from the training data behind its outputs.

    Each value of the inputs counts in units of its standard deviation in the training data.
    """

    def inner_service(self, service: ServiceConfig) -> ServiceConfig:
        """Return the table of the model, which says nothing of this."""
        return service.model_copy(update={"outputs": seen(service), "uncertainty": None})

    def load(self) -> None:
        """Read the training data, and load the model.

        Raises:
            ModelError: If the data do not fit, or the model works in steps.
        """
        self._distance = Distance(training_rows(self.service), self._table.neighbours)
        super().load()
        if self._model.steps:
            raise ModelError(Code.EMODEL, "a model that works in steps has no distances of rows")

    @property
    def _table(self) -> Any:
        return self.service.uncertainty

    def run(self, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Run the model, and measure the distances."""
        distances = self._measured(inputs)  # first: the model may write to its inputs
        return [*ordered(self._informed().run(inputs), self._model.service), distances]

    def _measured(self, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        if self.service.rows == "none":
            return self._distance(flat(inputs, 1))[0]
        return self._distance(flat(inputs, len(inputs[0])))

    def tune(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> None:
        """Tune the model."""
        self._model.together = self.together
        self._model.tune(self.given(inputs), outputs[:-1])

    def writes(self, inputs: tuple[np.ndarray, ...]) -> bool:
        """Return whether the model writes to its inputs."""
        return self._model.writes(inputs)

    def take_over(self, old: Backend) -> None:
        """Take over the tuning of the model's version before."""
        if isinstance(old, DistanceBackend):
            self._model.take_over(old._model)


class Distance:
    """The mean distance of rows to the nearest ones of the training data.

    1 is the distance that 99 % of the training rows stay within, each among the others.

    Args:
        rows: The training data, [rows, values].
        neighbours: How many of the nearest rows count.

    Raises:
        ModelError: If there are too few rows.
    """

    def __init__(self, rows: np.ndarray, neighbours: int) -> None:
        try:
            from sklearn.neighbors import NearestNeighbors
        except ModuleNotFoundError:
            text = "method = 'distance' needs scikit-learn: pip install 'mpiserve[trust]'"
            raise ModelError(Code.EMODEL, text) from None
        if len(rows) <= neighbours:
            text = f"{len(rows)} training rows are too few for {neighbours} neighbours of each"
            raise ModelError(Code.EMODEL, text)
        if not np.isfinite(rows).all():
            raise ModelError(Code.EMODEL, "the training data have values that are not finite")
        varies = np.ptp(rows, 0) > 0  # the deviation of equal values may be rounding, and not 0
        self._mean, self._scale = rows.mean(0), 1 / np.where(varies, rows.std(0), 1)
        self._neighbours = neighbours
        self._tree = NearestNeighbors(n_neighbors=neighbours).fit(self._scaled(rows))
        self._unit = self._unit_of(rows)

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        """Around 0: of squares of large numbers, small differences would be lost."""
        scaled: np.ndarray = (rows - self._mean) * self._scale
        return scaled

    def _unit_of(self, rows: np.ndarray) -> float:
        some = np.random.default_rng(0).permutation(len(rows))[:ENOUGH]
        found, _ = self._tree.kneighbors(self._scaled(rows[some]), self._neighbours + 1)
        unit = float(np.quantile(found[:, 1:].mean(1), SHARE))  # the first one is the row itself
        if unit == 0:
            raise ModelError(Code.EMODEL, "the training data are many copies of few rows")
        return unit

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Measure rows, [rows, values]; NaN where a value is not finite."""
        distances = np.full(len(rows), np.nan, np.float32)
        finite = np.isfinite(rows).all(1)
        if finite.any():
            found, _ = self._tree.kneighbors(self._scaled(rows[finite]))
            distances[finite] = found.mean(1) / self._unit
        return distances


def flat(arrays: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Put the values of each row side by side, as float64; complex ones are two."""
    parts = [part for a in arrays for part in ((a.real, a.imag) if np.iscomplexobj(a) else (a,))]
    return np.concatenate([np.asarray(a, np.float64).reshape(rows, -1) for a in parts], axis=1)


def training_rows(service: ServiceConfig) -> np.ndarray:
    """Read the training data of a service, [rows, values].

    Raises:
        ModelError: If they cannot be read, or do not fit the inputs.
    """
    table = service.uncertainty
    path = service.folder / str(table and table.data)
    arrays = _saved(path) if path.suffix == ".npz" else _captured(path, service)
    missing = [tensor.name for tensor in service.inputs if tensor.name not in arrays]
    if missing:
        raise ModelError(Code.EMODEL, f"{path}: no array '{missing[0]}', as the input")
    found = [arrays[t.name].astype(dtype_of(t)) for t in service.inputs]  # as requests have them
    for tensor, array in zip(service.inputs, found, strict=True):
        if array.shape[1:] != tensor.row_shape or len(array) != len(found[0]):
            text = f"'{tensor.name}' is {list(array.shape)}, of rows {list(tensor.row_shape)}"
            raise ModelError(Code.EMODEL, f"{path}: {text}; all arrays need as many rows")
    rows = flat(found, len(found[0]))
    logger.info("service %s: %d rows of training data in %s", service.name, len(rows), path)
    return rows


def _saved(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    # AttributeError: of a single array, which is no archive.
    except (OSError, ValueError, BadZipFile, AttributeError, TypeError) as error:
        raise ModelError(Code.EMODEL, f"{path}: no training data: {error}") from None


def _captured(path: Path, service: ServiceConfig) -> Mapping[str, np.ndarray]:
    from mpiserve.observe.capture_data import Capture

    try:
        inputs, _ = Capture(path, service.name, "physics")[:]
    except ArgumentError as error:
        raise ModelError(Code.EMODEL, f"no training data: {error}") from None
    return inputs
