"""Choose what runs a model: Python, or an engine in C. It is compared with Python, then timed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf, prod
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpiserve.backends.arrays import zeros
from mpiserve.backends.base import Backend, Native
from mpiserve.config.engines import ENGINES
from mpiserve.config.tensor import Tensor
from mpiserve.config.uncertainty import is_hidden
from mpiserve.errors import Code, Error, ModelError
from mpiserve.failure import check_interrupt, describe, one_line
from mpiserve.serving.model_probe import EPS, Arrays, random_rows, reals

if TYPE_CHECKING:
    from mpiserve._lib.engine import Engine
    from mpiserve.config import ServiceConfig, TensorConfig

logger = logging.getLogger("mpiserve")

FEW = (1, 2, 3, 17)  # rows of batches to compare, beside the largest
CHUNKS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Of the largest magnitude of an output: how much two engines may differ, by its dtype. Each sums
# in an order of its own.
TOLERANCE = {"float64": 1e-11, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
TOLERANCE |= {"complex64": TOLERANCE["float32"], "complex128": TOLERANCE["float64"]}
ROUNDS = 7
SECONDS = 0.5  # of measuring at one number of rows
SHORT = 2e-4  # seconds: faster calls are measured several at a time
FAILED = "its engine failed on a batch, which runs in Python now"
GAIN = 0.97  # of the time in Python: an engine must be at least so fast


class Times(NamedTuple):
    """Seconds for a batch, in Python and in C, by its rows."""

    rows: int
    python: float
    native: float


class Called:
    """A model, called from Python: by its engine in C if it has one.

    Args:
        backend: The model.
        service: The table of the service.

    Attributes:
        engine: The engine.
    """

    def __init__(self, backend: Backend, service: ServiceConfig) -> None:
        self._backend, self._service = backend, service
        self.engine: Engine | None = None
        self._warned = False
        try:
            self.engine = load(backend.native, service) if backend.native else None
        except Error as error:  # the cache is not what it was
            self._warn(error)

    def run(self, inputs: Arrays, outputs: Arrays, done: Callable[[int], None]) -> Any:
        """Run a batch, as `Backend.run_batch` does.

        Raises:
            Exception: Any exception of the model.
        """
        if self.engine:
            try:
                self.engine.run(inputs, outputs)
            except Error as error:
                self._warn(error)
            else:
                return outputs
        return self._backend.run_batch(inputs, outputs, done)

    def _warn(self, error: Error) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("service %s: %s: %s", self._service.name, FAILED, error.text)


def limit_threads(threads: int) -> None:
    """Tell libraries that are loaded from now on how many threads they may start."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)


def engine_of(backend: Backend) -> str:
    """Return the engine of a backend, which may be a class of the user."""
    try:
        return one_line((backend.native and backend.native.text) or backend.engine)
    except BaseException:
        check_interrupt()
        return one_line(type(backend).__qualname__)


def load(native: Native, service: ServiceConfig) -> Engine:
    """Load an engine in C.

    Raises:
        ModelError: If its library cannot, with the reason.
    """
    from mpiserve._lib.engine import Engine

    inputs, outputs = (
        [Tensor(tensor.name, tensor.dtype, tensor.shape) for tensor in side]
        for side in (service.inputs, service.outputs)
    )
    most, chunk = service.max_batch_rows, native.chunk_rows
    return Engine(native.library, native.model, inputs, outputs, most, chunk)


def choose(
    backend: Backend,
    service: ServiceConfig,
    examples: Arrays | None,
    measure: bool = True,
    build: bool = False,
) -> Native | None:
    """Choose what runs a model that is loaded and warm.

    Args:
        backend: What runs it in Python.
        service: The table of the service.
        examples: The rows that `warmup` names, if it names a file.
        measure: Whether to take the faster one; otherwise the one in C, if there is one.
        build: Whether to make an engine that does not exist yet, which may take minutes.

    Returns:
        The engine in C, or None if Python runs the model; for now, if `to_compile` of the backend
        is set.

    Raises:
        ModelError: If the configuration requires an engine that the model cannot have.
    """
    if service.engine not in ("auto", "compiled"):
        return None
    if service.engine == "auto" and service.reproducible:  # neither its time nor the cache decides
        return None
    required = service.engine == "compiled"
    try:
        return _chosen(backend, service, examples, measure and not required, build or required)
    except BaseException as error:
        check_interrupt()
        if required:
            text = f"engine = 'compiled' is not possible: {describe(error)}; remove it"
            raise ModelError(Code.EMODEL, text) from error
        if service.backend in ENGINES["compiled"]:
            why = f"the compiled one is not possible: {describe(error)}"
            logger.info("service %s is run by %s: %s", service.name, engine_of(backend), why)
        return None


def _chosen(
    backend: Backend, service: ServiceConfig, examples: Arrays | None, measure: bool, build: bool
) -> Native | None:
    if service.tensor_parallel > 1:
        raise ModelError(Code.EMODEL, "several ranks run the model together")
    if backend.copies:
        raise ModelError(Code.EMODEL, "the model changes or keeps its inputs")
    if not service.warmup_rows:
        raise ModelError(Code.EMODEL, "it needs warmup, when it is compared with the model")
    native = backend.compiled(build)
    if native is None:
        return None
    engine = load(native, service)
    _compare(backend, engine, service, examples, (*FEW, service.warmup_rows[-1]))
    largest = _filled(service, examples, service.warmup_rows[-1])
    engine.chunk_rows = 0 if backend.together else _chunk(engine, service, largest)
    times = _times(backend, engine, service, largest)
    gain = prod(time.native / time.python for time in times) ** (1 / len(times))
    taken = not measure or gain < GAIN
    _log(service, backend, times, taken)
    first = times[0]
    figures = f"{_rows(first.rows)} {_us(first.native)}, in Python {_us(first.python)}"
    text = f"{native.text}, {figures}"
    return native._replace(chunk_rows=engine.chunk_rows, text=text) if taken else None


# ---- comparison


def verify(
    backend: Backend, native: Native, service: ServiceConfig, examples: Arrays | None
) -> None:
    """Compare an engine that another process has chosen with the model that answers here.

    Raises:
        ModelError: If they differ: that process has read other files than this one.
    """
    with backend.serving():
        _compare(backend, load(native, service), service, examples, FEW)


def _compare(
    backend: Backend,
    engine: Engine,
    service: ServiceConfig,
    examples: Arrays | None,
    counts: Sequence[int],
) -> None:
    """Compare the engine with Python, on zeros, random rows and examples of these numbers.

    Raises:
        ModelError: If they differ by more than rounding, or the model accepts none of these.
    """
    compared = 0
    for rows in sorted(set(counts)):
        if rows > service.max_batch_rows:
            continue
        for inputs in _candidates(service, examples, rows):
            expected = _expected(backend, service, inputs)
            if expected is not None:
                _check(engine, service, inputs, expected)
                compared += 1
    if not compared:
        raise ModelError(Code.EMODEL, "the model accepts neither zeros nor random rows")


def _candidates(service: ServiceConfig, examples: Arrays | None, rows: int) -> Iterator[Arrays]:
    if examples:
        yield _filled(service, examples, rows)
        return
    like = zeros(service.inputs, rows)
    yield like
    yield from random_rows(like)


def _expected(backend: Backend, service: ServiceConfig, inputs: Arrays) -> Arrays | None:
    outputs = zeros(service.outputs, len(inputs[0]))
    try:
        backend.run_batch(inputs, outputs, _ignore)
    except BaseException:  # such rows are none of the model's
        check_interrupt()
        return None
    return outputs


def _check(engine: Engine, service: ServiceConfig, inputs: Arrays, expected: Arrays) -> None:
    outputs = tuple(np.full_like(array, 1) for array in expected)
    engine.run(inputs, outputs)
    for tensor, mine, theirs in zip(service.outputs, outputs, expected, strict=True):
        if problem := _difference(mine, theirs, _least_scale(service, tensor)):
            text = f"on {_rows(len(mine))}, output '{tensor.name}' differs from the model's"
            text = f"{text}: {problem}"
            raise ModelError(Code.EMODEL, text)


def _least_scale(service: ServiceConfig, tensor: TensorConfig) -> float:
    """Return what an uncertainty is judged by: it is of answers that may agree to rounding."""
    table = service.uncertainty
    return table.limit if table and is_hidden(service, tensor) else 0.0


def _difference(mine: np.ndarray, theirs: np.ndarray, least: float = 0.0) -> str:
    """Say how two outputs differ by more than rounding, or return "".

    The scale is the largest value, and at least `least`.
    """
    name = theirs.dtype.name
    if name not in EPS:
        return "" if np.array_equal(mine, theirs) else "other integers"
    a, b = reals(mine), reals(theirs)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "other infinities, or values that are not numbers"
    scale = np.max(np.abs(b), initial=least, where=finite)
    worst = np.max(np.abs(a - b), initial=0.0, where=finite)
    if worst <= TOLERANCE[name] * scale or np.array_equal(a, b, equal_nan=True):
        return ""
    return f"by {worst:.2g}, where the largest value is {scale:.2g}"


# ---- measurement


def _filled(service: ServiceConfig, examples: Arrays | None, rows: int) -> Arrays:
    if examples:
        index = np.arange(rows) % len(examples[0])
        return tuple(array[index] for array in examples)
    return zeros(service.inputs, rows)


def _chunk(engine: Engine, service: ServiceConfig, inputs: Arrays) -> int:
    """Measure how many rows at a time are fastest; all at once if nothing is clearly faster."""
    rows = len(inputs[0])
    if service.chunk_rows or service.reproducible:
        return service.chunk_rows
    outputs = zeros(service.outputs, rows)
    sizes = [0, *(chunk for chunk in CHUNKS if chunk < rows)]
    times = _best([partial(_run_chunk, engine, size, inputs, outputs) for size in sizes])
    best = min(range(len(sizes)), key=lambda i: times[i])
    return sizes[best] if times[best] < GAIN * times[0] else 0


def _run_chunk(engine: Engine, chunk: int, inputs: Arrays, outputs: Arrays) -> None:
    engine.chunk_rows = chunk
    engine.run(inputs, outputs)


def _times(
    backend: Backend, engine: Engine, service: ServiceConfig, largest: Arrays
) -> list[Times]:
    """Time both at one row, at the chunk of the engine, and at the largest batch."""
    most = len(largest[0])
    first = 1 if not backend.together else most
    measured = []
    for rows in sorted({first, min(engine.chunk_rows or most, most), most}):
        inputs = tuple(np.ascontiguousarray(array[:rows]) for array in largest)
        outputs = zeros(service.outputs, rows)
        calls = (
            partial(backend.run_batch, inputs, outputs, _ignore),
            partial(engine.run, inputs, outputs),
        )
        with backend.serving():
            times = _best(calls)
        measured.append(Times(rows, *times))
    return measured


def _best(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Time calls in turns, so that other load on the machine affects all alike."""
    times, counts = [inf] * len(calls), [1] * len(calls)
    end = perf_counter() + SECONDS
    for turn in range(ROUNDS):
        for i, call in enumerate(calls):
            begin = perf_counter()
            for _ in range(counts[i]):
                call()
            spent = (perf_counter() - begin) / counts[i]
            if turn:  # the first one warms up
                times[i] = min(times[i], spent)
            counts[i] = max(1, int(SHORT / spent))
        if turn and perf_counter() > end:
            break
    return times


def _log(service: ServiceConfig, backend: Backend, times: Sequence[Times], taken: bool) -> None:
    figures = ", ".join(
        f"{_rows(time.rows)} {_us(time.native)} and {_us(time.python)}" for time in times
    )
    name = "the compiled engine" if taken else "Python"
    text = f"is run by {name}: compiled and in Python ({backend.engine}) {figures}"
    logger.info("service %s %s", service.name, text)


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:.3g} us"


def _ignore(_rows: int) -> None:
    """Ignore finished rows: warm-up has no clients."""
