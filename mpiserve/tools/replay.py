"""`replay`: the batches of a capture again, through the same model or another one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpiserve import terminal
from mpiserve.backends.arrays import aligned, finished, room_for
from mpiserve.backends.base import Backend
from mpiserve.config import Config, ServiceConfig
from mpiserve.errors import Code, ConfigError, ModelError
from mpiserve.observe import capture_files as files
from mpiserve.observe.capture_data import Capture, files_of
from mpiserve.serving import engines
from mpiserve.serving.loading import Loader
from mpiserve.tools.capture import told
from mpiserve.tools.replay_picture import Replayed, check_kind, draw

QUANTILES = (0.5, 0.99, 1.0)


class Batch(NamedTuple):
    """A batch of a capture.

    Attributes:
        rows: The numbers of its rows in the capture, in the order of the batch.
        whole: Whether all of its rows were captured, and ran in one call.
    """

    rows: np.ndarray
    whole: bool


def batches(capture: Capture) -> Iterator[Batch]:
    """Yield the batches of a capture, rank by rank, each in the order of its rows.

    A part of a batch is a batch too: the rest was not captured. What simulations have recorded is
    of no batch.
    """
    rows = np.flatnonzero(capture.column("source") == files.SOURCES.index("model"))
    columns = {name: capture.column(name) for name in ("head", "batch", "row_in_batch")}
    total = capture.column("batch_rows")
    keys = columns["row_in_batch"][rows], columns["batch"][rows], columns["head"][rows]
    order = rows[np.lexsort(keys)]
    head, batch = columns["head"][order], columns["batch"][order]
    ends = np.flatnonzero((np.diff(head) != 0) | (np.diff(batch) != 0)) + 1
    for own in np.split(order, ends):
        if len(own):
            places = columns["row_in_batch"][own]
            whole = len(own) == total[own[0]] and (places == np.arange(len(own))).all()
            yield Batch(own, bool(whole))


class Model:
    """A model that runs batches in this process.

    Args:
        service: Its table.
    """

    def __init__(self, service: ServiceConfig) -> None:
        self.remarks: list[str] = []
        self._service = service
        self._backend: Backend = Loader(None, 0, self.remarks.append).load(service)
        native = self._backend.native
        self._engine = engines.load(native, service) if native else None
        self.engine = engines.engine_of(self._backend)

    def __call__(self, inputs: tuple[np.ndarray, ...]) -> Sequence[np.ndarray]:
        """Return the outputs of a batch."""
        rows = len(inputs[0])
        inputs = tuple(aligned(array) for array in inputs)
        outputs = tuple(aligned(array) for array in room_for(self._service, rows))
        if self._engine:
            self._engine.run(inputs, outputs)
            return outputs
        given = self._backend.given(inputs)
        result = self._backend.run_batch(given, outputs, lambda _: None)
        return outputs if result is outputs else finished(result, self._service, rows)

    def close(self) -> None:
        """Let the model go."""
        self._backend.close()


class Difference(NamedTuple):
    """How answers differ from those that were captured.

    Attributes:
        largest: Of each row, by output: the largest absolute difference; NaN on one side only is
            infinite.
        unequal: Of each row, by output: whether a bit differs.
        rows: The rows, as they are numbered in the capture.
    """

    largest: list[np.ndarray]
    unequal: list[np.ndarray]
    rows: np.ndarray


def difference(
    answers: Sequence[np.ndarray], before: Sequence[np.ndarray], rows: Any
) -> Difference:
    """Compare the answers to rows with those of before."""
    pairs = [
        (a.reshape(len(rows), -1), b.reshape(len(rows), -1))
        for a, b in zip(answers, before, strict=True)
    ]
    unequal = [
        (np.ascontiguousarray(a).view(np.uint8) != np.ascontiguousarray(b).view(np.uint8)).any(1)
        for a, b in pairs
    ]
    return Difference([_largest(a, b) for a, b in pairs], unequal, rows)


def _largest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind not in "fc":  # bfloat16 has kind V
        a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        apart = (
            np.abs(a.astype(np.complex128) - b)
            if a.dtype.kind == "c"
            else np.abs(a.astype(np.float64) - b.astype(np.float64))
        )
    apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, apart)
    return np.where(np.isnan(apart), np.inf, apart).max(1, initial=0.0)


@told
def replay(path: str, config: str | None, version: str, worst: int, picture: str | None) -> None:
    """Replay each service of a capture that the configuration has, and show the differences."""
    if picture and not find_spec("matplotlib"):
        raise ValueError("--picture needs matplotlib: pip install 'mpiserve[demo]'")
    if picture:
        check_kind(Path(picture))
    read = Config.load(config) if config else configuration_of(Path(path))
    names = _services(Path(path))
    chosen = [service for service in read.services if service.name in names]
    if not chosen:
        text = f"{path} has {', '.join(names) or 'no rows'}; none of these is in {read.source}"
        raise ConfigError(Code.ECONFIG, text)
    broken, seen = [], []
    for service in chosen:
        wanted = service.of_version(version) if version else service.of_version()
        replayed, unequal = _replay(Capture(path, service.name), wanted, worst)
        seen.append(replayed)
        if unequal and service.reproducible and not config and not version:
            broken.append(f"{unequal} rows of service '{service.name}'")
    if picture:
        draw(seen, Path(picture))
        print(f"{picture}: the differences")
    if broken:
        text = f"{', '.join(broken)} should have the same bits (reproducible), and have others"
        raise ModelError(Code.EMODEL, text)


def _services(path: Path) -> list[str]:
    opened = files.opened_all(files_of(path))
    try:
        return [*files.services_of(opened)]
    finally:
        for file in opened:
            file.close()


def configuration_of(path: Path) -> Config:
    """Return the configuration of the job that made a capture.

    Raises:
        ConfigError: If it is not in the files, or wrong here.
    """
    found = files_of(path)
    text = ""
    if found:
        with files.opened(found[0]) as file:
            text = str(file.attrs.get("configuration", ""))
    if not text:
        raise ConfigError(Code.ECONFIG, f"{path} has no configuration: name one")
    services = json.loads(text)["service"]
    derived = [f"{name}.{kind}" for name, s in services.items() for kind in s["derivatives"]]
    kept = {name: table for name, table in services.items() if name not in derived}
    return Config.from_dict({"service": kept}, source=f"the configuration in {path}")


def _replay(capture: Capture, service: ServiceConfig, worst: int) -> tuple[Replayed, int]:
    """Replay a service; return also how many rows of whole batches of the first model differ."""
    tensors = [(t.name, t.dtype) for t in service.inputs], [t.name for t in service.outputs]
    if [name for name, _ in tensors[0]] != capture.inputs or tensors[1] != capture.outputs:
        text = f"{capture.inputs} and {capture.outputs} were captured"
        raise ConfigError(Code.ECONFIG, f"service '{service.name}' has another signature: {text}")
    model, generation = Model(service), capture.column("generation")
    try:
        found, whole, count, unequal = [], 0, 0, 0
        for batch in batches(capture):
            inputs, before = capture[batch.rows]
            answers = model(tuple(inputs.values()))
            each = difference(answers, [*before.values()], batch.rows)
            found.append(each)
            whole, count = whole + batch.whole, count + 1
            if batch.whole and generation[batch.rows].max() == 1:
                unequal += int(np.any(each.unequal, axis=0).sum())
    finally:
        model.close()
    rows = sum(len(each.rows) for each in found)
    print(f"service {service.name}: {rows} rows in {count} batches, {model.engine}")
    if not count:
        return Replayed(service.name, {}, np.array([])), 0
    if whole < count:
        print(f"{count - whole} batches were captured in part: others may round differently")
    largest = _show(capture, found, worst)
    steps = capture.column("step")[np.concatenate([each.rows for each in found])]
    return Replayed(service.name, largest, steps), unequal


def _show(capture: Capture, found: Sequence[Difference], worst: int) -> dict[str, np.ndarray]:
    """Print the differences; return the largest one of each row, by output."""
    from rich.table import Table

    table = Table("output", "rows with other bits", "median", "99 %", "largest")
    rows = np.concatenate([each.rows for each in found])
    largest = {}
    for i, name in enumerate(capture.outputs):
        unequal = sum(int(each.unequal[i].sum()) for each in found)
        largest[name] = np.concatenate([each.largest[i] for each in found])
        shown = [f"{value:.3g}" for value in np.quantile(largest[name], QUANTILES)]
        table.add_row(name, str(unequal), *shown)
    terminal.console().print(table)
    total = np.max([*largest.values()], axis=0)
    order = np.argsort(-total, kind="stable")[:worst]
    for at in order[total[order] > 0]:
        row = int(rows[at])
        about = [f"{k} {capture.column(k, slice(row, row + 1))[0]}" for k in ("rank", "step")]
        print(f"row {row} ({', '.join(about)}): {total[at]:.3g}")
    return largest
