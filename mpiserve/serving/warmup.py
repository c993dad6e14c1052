"""Warm up a model, and find out whether it needs whole requests or copies of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from mpiserve.backends.arrays import checked, dtype_of, finished, room_for, zeros
from mpiserve.backends.base import Backend
from mpiserve.config.uncertainty import seen
from mpiserve.errors import CausedError, Code, Error, ModelError
from mpiserve.failure import check_interrupt, describe
from mpiserve.mpi.requests import agree
from mpiserve.serving import engines, ragged_probe
from mpiserve.serving.model_probe import (
    EPS,
    FEW,
    Arrays,
    Calls,
    Finding,
    Probe,
    random_rows,
    repeated,
    size,
    unlike,
)

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiserve.config import ServiceConfig, TensorConfig

OFF = "without warm-up nothing is known about the model"
HINT = (
    'warm-up runs on zeros: if the model cannot, set warmup = "file.npz" with rows that it can '
    "run on, warmup = [N] if it takes N rows alone, or warmup = false"
)
UNKNOWN = "unknown"
COPIED = {"changes": "the model changes its input", "keeps": "the model keeps its input"}


class WarmupError(CausedError):
    """The model raised an exception during warm-up, which is this error's cause."""


class Found(NamedTuple):
    """The properties of a model.

    Attributes:
        rows: Whether the rows of a request belong together.
        memory: How the model treats its inputs: a key of COPIED, UNKNOWN, or "" if it only
            reads them.
    """

    rows: Finding
    memory: str


class Warmup:
    """Runs a model on the batches of warm-up, and on batches that reveal its properties.

    Sets `together` and `copies` of the backend.

    Args:
        backend: The backend, which has loaded its model.
        service: The table of the service.
        comm: The ranks of the replica that run the model together, if there are several.

    Attributes:
        remarks: Texts for the user, one line each.
    """

    def __init__(self, backend: Backend, service: ServiceConfig, comm: MPI.Comm | None) -> None:
        self.backend = backend
        self._service = service
        self._comm = comm
        self._examples: Arrays | None = None
        self._calls = Calls(self._run, service.input_memory == "copy")
        self._failed: BaseException | None = None  # on one row
        self._found: Found | None = None
        self._unlike = "", ""
        self.remarks: list[str] = []

    def look(self) -> None:
        """Warm up the model and examine it, without waiting for other ranks.

        Raises:
            Exception: Any exception of the model.
        """
        backend, service = self.backend, self._service
        if backend.wants_clients and self._comm:
            text = "a model with an argument 'clients' needs tensor_parallel = 1"
            raise ModelError(Code.EMODEL, text)
        if service.cache_rows and (text := _answers_by_more(backend)):
            raise _not_kept(service, text)
        self._examples = examples(service)
        if service.rows == "ragged":
            ragged_probe.look(service, self._rows, self._run)
        elif backend.native or backend.steps:
            for rows in service.warmup_rows:
                self._run(self._rows(rows))
        else:
            backend.together = backend.copies = True  # the probe passes whole batches and copies
            self._found = self._look()
        if service.cache_rows:
            self._unlike = self._call_twice()

    def settle(
        self, old: Backend | None = None, tuning: Any = None, in_c: bool | None = None
    ) -> None:
        """Set the backend's properties, after all ranks of the replica have called `look`.

        Args:
            old: The version that answers now, if there is one.
            tuning: Its tuning, if it is in another process.
            in_c: Whether an engine in C runs it there; None if there is none.

        Raises:
            ModelError: On every rank, if the configuration contradicts the findings.
        """
        backend, service = self.backend, self._service
        if self._found:
            self._choose(self._agreed(self._found, self._comm) if self._comm else self._found)
        else:
            backend.together = service.by_request
        if service.cache_rows:
            self._check_kept()
        if old:
            backend.take_over(old)
        elif tuning is not None:
            backend.tune_result = tuning
        # Several ranks must run the same number of rows at a time, so none of them tunes it.
        elif service.warmup_rows and service.rows != "ragged" and not self._comm:
            rows = service.warmup_rows[-1]
            backend.clients = np.full(rows, -1, np.int32)
            backend.tune(self._rows(rows), zeros(service.outputs, rows))
        # Beside a model that is busy nothing is measured: the new one runs as the old one does.
        if old:
            in_c = None if old.to_compile else old.native is not None
        # Of several ranks the first one logs why they have none.
        if in_c is not False and (self._comm is None or self._comm.rank == 0):
            chosen = engines.choose(backend, service, self._examples, measure=in_c is None)
            backend.native = chosen or backend.native

    def repeat(self) -> None:
        """Warm up a model whose properties are known: it was loaded before."""
        self._examples = examples(self._service)
        for rows in self._service.warmup_rows:
            _attempt(partial(self._run, self.backend.given(self._rows(rows))))

    # ---- calls

    def _run(self, inputs: Arrays) -> list[np.ndarray]:
        """Run one batch as serving does, and check its results."""
        backend, service, rows = self.backend, self._service, len(inputs[0])
        backend.clients = np.full(rows, -1, np.int32)
        room = room_for(service, rows)
        result = backend.run(inputs) if self._comm else backend.run_batch(inputs, room, _ignore)
        return finished(result, service, rows)

    def _rows(self, rows: int) -> Arrays:
        """Make the inputs of a batch of warm-up."""
        if self._service.rows == "ragged":
            return ragged_probe.largest(self._service, self._examples, rows)
        if self._examples:
            return repeated(self._examples, rows)
        return zeros(self._service.inputs, rows)

    def _try(self, rows: int) -> None:
        """Run a batch of warm-up.

        A model that fails on a single row may be one for whole fields: then two rows are tried.
        """
        try:
            self._calls(self._rows(rows))
        except BaseException as error:
            check_interrupt()
            if rows > 1 or self._service.max_batch_rows == 1:
                self._raise(self._failed or error)
            if isinstance(self._service.warmup, tuple):
                self._raise(error)
            self._failed = error
            self._try(2)

    def _raise(self, error: BaseException) -> None:
        if isinstance(error, Error) or self._examples:
            raise error
        raise WarmupError(Code.EMODEL, f"{describe(error)}; {HINT}") from error

    # ---- findings

    def _look(self) -> Found:
        service = self._service
        alone = service.max_batch_rows == 1  # every batch is one row: rows are independent
        if not service.warmup_rows:
            return Found(Finding() if alone else Finding(OFF), UNKNOWN)
        bytes_ = sum(array.nbytes for array in zeros(service.inputs, 1))
        looked = size(service.max_batch_rows, bytes_)
        names = [tensor.name for tensor in seen(service)]
        probe = Probe(self._answers, names, _eps(service, self.backend))
        for rows in service.warmup_rows:
            if rows <= looked:
                self._try(rows)
        self._find(probe, looked)
        for rows in service.warmup_rows:
            if rows > looked and not probe.repeat(rows):
                self._try(rows)
        return self._sum_up(probe.finding)

    def _answers(self, inputs: Arrays, *rows: int) -> list[np.ndarray]:
        """Run the model, and leave out an uncertainty: rounding of the answers is large there."""
        return self._calls(inputs, *rows)[: len(seen(self._service))]

    def _find(self, probe: Probe, rows: int) -> None:
        """Compare rows, or only watch the inputs if the configuration says how rows relate."""
        candidates = self._candidates(rows)
        if not self._service.by_request and rows > 1:
            probe.find(candidates)
        else:
            _attempt(lambda: self._calls(next(candidates)))
        if _attempt(lambda: self.backend.writes(self._rows(rows))):
            self._calls.changed = True

    def _candidates(self, rows: int) -> Iterator[Arrays]:
        if self._examples:
            return iter([repeated(self._examples, rows)])
        return random_rows(zeros(self._service.inputs, rows))

    def _sum_up(self, finding: Finding) -> Found:
        if self._failed and not finding.proven:
            finding = Finding(f"it fails on 1 row: {describe(self._failed)}")
        calls = self._calls
        return Found(finding, "changes" if calls.changed else "keeps" if calls.kept else "")

    def _agreed(self, found: Found, comm: MPI.Comm) -> Found:
        """Combine the findings of all ranks of the replica. Collective."""
        any_rank = partial(agree, comm, seconds=self._service.peer_timeout_s)
        proven = bool(any_rank("proven" if found.rows.proven else ""))
        kinds = [
            kind for kind in (*COPIED, UNKNOWN) if any_rank(kind if found.memory == kind else "")
        ]
        gross = bool(any_rank("gross" if found.rows.gross else ""))
        return Found(Finding(any_rank(found.rows.why), proven, gross), [*kinds, ""][0])

    def _call_twice(self) -> tuple[str, str]:
        """Compare two answers to the same rows, whatever `warmup` says of batches of zeros."""
        rows = min(FEW, self._service.max_batch_rows)
        names = [tensor.name for tensor in seen(self._service)]
        others = zeros(self._service.inputs, rows)
        eps = _eps(self._service, self.backend)
        between = partial(_attempt, lambda: self._answers(others))
        return unlike(self._answers, self._candidates(rows), between, names, eps)

    # ---- consequences

    def _check_kept(self) -> None:
        """Refuse a model whose answers must not be kept, on every rank of the replica."""
        service, (why, unknown) = self._service, self._unlike
        if self.backend.together:
            rows = self._found.rows.why if self._found else "it takes whole requests"
            why = f"only independent rows are kept, and {rows}"
            raise _not_kept(service, f'{why}; set rows = "independent" if they are, or')
        if self._comm:
            why = agree(self._comm, why, seconds=service.peer_timeout_s)
        if why:
            raise _not_kept(service, f"{why}: the model is random, or has a state;")
        if unknown:
            text = f"cache_rows: it is unknown whether the model answers a row alike: {unknown}"
            self.remarks.append(f'{text}; set warmup = "file.npz" with rows that it can run on')

    def _choose(self, found: Found) -> None:
        service, backend = self._service, self.backend
        for key, text in _against(service, found):
            raise ModelError(Code.EMODEL, f"service.{service.name}.{key}: {text}")
        rows, memory = service.rows, service.input_memory
        backend.together = service.by_request or (rows is None and bool(found.rows.why))
        backend.copies = memory == "copy" or (memory is None and bool(found.memory))
        if (rows is None and found.rows.why) or (rows == "independent" and found.rows.proven):
            self.remarks.append(_about_rows(found.rows, rows))
        if memory is None and found.memory:
            self.remarks.append(_about_memory(found.memory))


def _against(service: ServiceConfig, found: Found) -> Iterator[tuple[str, str]]:
    """Yield keys of the configuration that contradict the findings, and what to do."""
    why = f"the rows of a request belong together ({found.rows.why})"
    if service.rows == "independent" and found.rows.gross:
        yield "rows", f"'independent', but {why}; set rows = \"together\", or remove it"
    if service.rows is None and service.chunk_rows and found.rows.gross:
        yield "chunk_rows", f"cuts requests, but {why}; remove it"
    if service.input_memory == "view" and found.memory in COPIED:
        text = f"'view', but {COPIED[found.memory]}; set input_memory = \"copy\", or remove it"
        yield "input_memory", text


def _answers_by_more(backend: Backend) -> str:
    """Say by what the model answers, beside its inputs."""
    if backend.steps:
        return "the model works in steps, and may continue what it has begun;"
    return "the model asks who its clients are;" if backend.wants_clients else ""


def _not_kept(service: ServiceConfig, why: str) -> ModelError:
    return ModelError(Code.EMODEL, f"service.{service.name}.cache_rows: {why} remove it")


def _about_rows(finding: Finding, rows: str | None) -> str:
    if rows:
        return (
            f'rows = "independent" is set, so rows are batched, though {finding.why}: '
            "this may be rounding"
        )
    if finding.proven:
        return (
            f"the rows of a request belong together: {finding.why}. So each request is a call of "
            'its own (set rows = "together" to silence this warning)'
        )
    return (
        f"it is unknown whether rows are independent: {finding.why}. So each request is a call "
        'of its own and chunk_rows is not used; set rows = "independent" or "together"'
    )


def _about_memory(memory: str) -> str:
    what = COPIED.get(memory, OFF)
    return (
        f"{what}, so it gets copies of the clients' memory "
        '(set input_memory = "copy" to silence this warning, or "view" if it needs no copies)'
    )


def _eps(service: ServiceConfig, backend: Backend) -> float:
    """Return the eps of the coarsest arithmetic between a row's inputs and outputs."""
    tensors = [tensor.dtype for tensor in (*service.inputs, *seen(service))]
    inside = list(backend.arithmetic) or ["float32"]  # a guess for the user's own backend
    return max((EPS[name] for name in [*tensors, *inside] if name in EPS), default=0.0)


def _ignore(_rows: int) -> None:
    """Ignore finished rows: warm-up has no clients."""


def _attempt(do: Callable[[], Any]) -> Any:
    """Call a model on rows that it may not support; return None if it raises."""
    try:
        return do()
    except BaseException:
        check_interrupt()
        return None


# ---- examples -----------------------------------------------------------------------------


def examples(service: ServiceConfig) -> Arrays | None:
    """Read the file of example rows that `warmup` names, if it names one.

    Raises:
        ModelError: If the file does not fit the signature, with the difference.
    """
    if not isinstance(service.warmup, str):
        return None
    try:
        return _read(service)
    except (OSError, BadZipFile, ValueError, Error) as error:
        text = error.text if isinstance(error, Error) else describe(error)
        text = f"service.{service.name}.warmup: {service.warmup}: {text}"
        raise ModelError(Code.EMODEL, text) from None


def _read(service: ServiceConfig) -> Arrays:
    inputs = service.derivative.inputs if service.derivative else service.inputs
    names = [tensor.name for tensor in inputs]
    with np.load(service.folder / str(service.warmup), allow_pickle=False) as file:
        if missing := [name for name in names if name not in file.files]:
            text = f"no array for the input '{missing[0]}'; the file has {', '.join(file.files)}"
            raise ModelError(Code.EMODEL, text)
        if unknown := [name for name in file.files if name not in names]:
            text = f"the array '{unknown[0]}' is not an input; the inputs are {', '.join(names)}"
            raise ModelError(Code.EMODEL, text)
        whole = service.rows in ("none", "ragged")
        arrays = tuple(_fitting(file[tensor.name], tensor, whole) for tensor in inputs)
    vectors = service.inputs[len(arrays) :]  # of a derivative; the file has none
    if whole:
        sizes = {
            tensor.dimension: array.shape[:1] for tensor, array in zip(inputs, arrays, strict=True)
        }
        ones = (_ones(tensor, sizes) for tensor in vectors)
        return tuple(array[None] for array in (*arrays, *ones))
    rows = [len(array) for array in arrays]
    if min(rows) != max(rows) or not rows[0]:
        raise ModelError(Code.EMODEL, f"every array needs the same number of rows, got {rows}")
    return (*arrays, *(np.ones_like(array) for array in zeros(vectors, rows[0])))


def _ones(tensor: TensorConfig, sizes: dict[str, tuple[int, ...]]) -> np.ndarray:
    """Make a vector of a derivative, for a request whose named dimensions have these sizes."""
    shape = (*sizes[tensor.dimension], *tensor.shape[1:]) if tensor.dimension else tensor.shape
    return np.ones(shape, dtype_of(tensor))


def _fitting(array: np.ndarray, tensor: TensorConfig, whole: bool) -> np.ndarray:
    dtype = dtype_of(tensor)
    if tensor.dtype == "bfloat16" and array.dtype == np.dtype("V2"):
        array = array.view(dtype)  # npz files do not store the name bfloat16
    rows = len(array) if array.ndim else 0
    return checked(array, tensor, dtype, None if whole else rows, "array")
