"""The table `[service.NAME]` of the configuration: a model, its signature and its batching."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, field_validator

from mpiserve.config import batching, ragged
from mpiserve.config.cached import CacheRows, CacheStep
from mpiserve.config.derivatives import Derivative, Kinds
from mpiserve.config.engines import engine_problem
from mpiserve.config.remote import Placement, Remote, remote_of
from mpiserve.config.tables import MAX_TENSORS, Names, Table, Tensors
from mpiserve.config.tensor_checks import (
    check_kept,
    check_model_dtype,
    check_names,
    check_row_dims,
    check_unbounded,
    mirrored,
)
from mpiserve.config.uncertainty import Uncertainty, outputs_of_model, served
from mpiserve.config.values import (
    MAX_BYTES,
    MAX_PARALLEL,
    MAX_RANKS,
    MAX_ROWS,
    MAX_SECONDS,
    MAX_THREADS,
    OBJECT,
    check_object,
    shown,
    suggest,
)
from mpiserve.config.version import UNTRAINED, VERSION, checked_version, filled
from mpiserve.errors import Code, ConfigError

MAX_BATCH_ROWS = 4096  # unless the configuration says more or less
BACKENDS = ("deepspeed", "torch", "onnx", "python", "echo", "remote")
TASKS = ("generate", "embed")
NEEDS_MPI = "communicates by MPI among the ranks of tensor_parallel, which a child cannot"


class ServiceConfig(Table):
    """One table `[service.NAME]`: a model, its signature and its batching policy."""

    backend: str = "deepspeed"
    """What runs the model: a built-in backend, or a subclass of `mpiserve.Backend` as
    `"module:Class"` or `"file.py:Class"`.
    """
    model: Annotated[str | None, Field(validate_default=True)] = None
    """The model: `"module:callable"`, `"file.py:callable"`, a model file, a Hugging Face directory,
    or its name at a server (backend `remote`). Required by all built-in backends except echo.
    """
    task: str | None = None
    """For a Hugging Face directory: continue sequences (`"generate"`) or map them to vectors
    (`"embed"`).
    """
    preprocess: Annotated[str | None, AfterValidator(check_object)] = None
    """A function that turns `inputs` into `model_inputs` before the model runs."""
    postprocess: Annotated[str | None, AfterValidator(check_object)] = None
    """A function that turns `model_outputs` into `outputs` after the model has run."""
    options: dict[str, Any] = Field(default_factory=dict)
    """A table of settings for the backend."""
    version: Annotated[str, Field(validate_default=True)] = ""
    """The version to start with; it replaces `{version}` in `model` and `options`. `"untrained"`:
    there are no weights yet. Until another version is loaded, by a trainer or by `reload`, no row
    is trusted, and the fallback of the simulation answers all of them. It needs `uncertainty`.
    """
    reload: Literal["beside", "in-place"] = "beside"
    """Whether a reload loads the new version beside the old one, or frees the old one first."""
    rows: Literal["independent", "together", "none", "ragged"] | None = None
    """Whether the model computes each row independently (`"independent"`), the rows of a request
    belong together (`"together"`), or there are no rows (`"none"`): then a batch is one request,
    whose tensors have the shapes of the signature. `"ragged"`: each request has its own number of
    rows in each named dimension, and a batch is those of several, one after the other. Without it,
    mpiserve tests at warm-up which of the first two it is.
    """
    inputs: Annotated[Tensors, Field(validate_default=True)] = ()
    """The input tensors of the signature, 1 to 16 tables. Required, unless the model is an ONNX
    file or a program of `torch.export`: without this key, mpiserve reads them from the file.
    """
    outputs: Annotated[Tensors, Field(validate_default=True)] = ()
    """The output tensors of the signature, 1 to 16 tables. Required as `inputs`, except for echo.
    """
    counts: Annotated[Names, AfterValidator(ragged.check_counts)] = ()
    """With `rows = "ragged"`: named dimensions of which the model gets the rows of each request, as
    int64 arrays [requests] behind the inputs.
    """
    allow_empty: Annotated[bool, AfterValidator(batching.check_empty)] = False
    """Whether a request may have 0 rows. It ends with its batch, and the model never sees it. Free
    dimensions may be 0 then, too.
    """
    model_inputs: Tensors | None = None
    """The tensors that `preprocess` returns; `inputs` if not given."""
    model_outputs: Tensors | None = None
    """The tensors that `postprocess` takes; `outputs` if not given."""
    replicas: int = Field(1, ge=1, le=MAX_RANKS)
    """Copies of the service, each on inference ranks of its own."""
    cores: int = Field(0, ge=0, le=MAX_THREADS)
    """Cores that a replica needs. `plan` refuses nodes that lack them; 0 means: not known."""
    gpus: int = Field(0, ge=0, le=MAX_PARALLEL)
    """GPUs that a replica needs, for `plan`."""
    tensor_parallel: int = Field(1, ge=1, le=MAX_PARALLEL)
    """Ranks of a replica, which share one model (DeepSpeed, or a backend of your own)."""
    peer_timeout_s: float = Field(300.0, gt=0, le=MAX_SECONDS)
    """With several ranks per replica: seconds after which a rank that does not respond is given
    up.
    """
    dtype: str | None = None
    """The dtype to convert a torch model to; without it the model keeps its own."""
    engine: str = "auto"
    """What executes the model: `"eager"` (torch in Python, without DeepSpeed), `"compiled"` (C++
    that torch makes of the model, which runs without Python), `"onnx"` or `"deepspeed"`. `"auto"`:
    the fastest that agrees with the backend's own; what the cache lacks is compiled meanwhile.
    """
    max_batch_rows: int = Field(MAX_BATCH_ROWS, ge=1, lt=MAX_ROWS, validate_default=True)
    """The most rows in a batch, which has at most 16 TiB. Larger requests are cut into pieces. With
    `rows = "none"` each request counts as one row, and this is 1; with `"ragged"` it is the most
    requests in a batch, and must be given.
    """
    max_delay_us: int = Field(batching.DELAY_US, ge=0, lt=2**31)
    """The longest time, in microseconds, that a request waits for others to share its batch."""
    pool_bytes: int = Field(0, ge=0, le=MAX_BYTES)
    """Memory for large payloads, in bytes per transport; 0 means 256 MiB."""
    stickiness: float = Field(0.25, gt=0, le=1)
    """How strongly clients prefer their home replica: they leave it for one that replies in
    less than `1 - stickiness` of the time. 1: they never leave it.
    """
    max_queue_rows: int = Field(0, ge=0, lt=2**62)
    """The most rows that wait at the head for a batch; 0 means no limit."""
    on_full: Annotated[Literal["wait", "reject"], AfterValidator(batching.check_on_full)] = "wait"
    """What happens to a request that finds the queue full: it waits, or ends with
    `QueueFullError`.
    """
    check: Literal["finite"] | None = None
    """`"finite"`: a row with a NaN or an infinite value in an output is no answer. Neither is one
    with a value outside of `min` and `max` of its output, or with a NaN where these are given.
    Clients check what they get: such rows go to the client's fallback, or the request ends with
    `ModelError`. Without these keys, any value is an answer.
    """
    fallback: Annotated[Literal["local"] | None, AfterValidator(batching.check_fallback)] = None
    """`"local"`: what no replica can answer, a local model answers: the client's own process runs
    the same model with the same settings. The first request that needs it starts it, and waits
    until it is loaded. Not with `tensor_parallel`, free dimensions, or ragged rows.
    """
    split_failed: Annotated[bool, AfterValidator(ragged.check_split)] = True
    """Whether a batch that fails is run again in halves, so that only the guilty request fails;
    always with `rows = "ragged"`.
    """
    isolate: Literal["auto"] | bool = "auto"
    """Whether the model runs in a child process of the inference rank, so that its crash fails
    only the request that causes it. `"auto"`: yes, unless the backend is echo, or one of your own
    on several ranks (`tensor_parallel`), which communicate by MPI. Batches that an engine in C can
    run (see `engine`) run in the rank, without a child on the way; `true` keeps that engine in the
    child too.
    """
    timeout_s: float = Field(0.0, ge=0, le=MAX_SECONDS)
    """Seconds that a batch, or a step of a model that works in steps, may take in the child: then
    the child is ended and started again. 0 means no limit.
    """
    load_timeout_s: float = Field(1800.0, gt=0, le=MAX_SECONDS)
    """Seconds that the child may take to load the model and warm it up."""
    memory_bytes: int = Field(0, ge=0, le=MAX_BYTES)
    """The most memory that the child may allocate, in bytes, beside the clients' tensors. 0 means
    no limit.
    """
    restarts: int = Field(20, ge=0, lt=2**31)
    """Restarts of the child within `restart_window_s` before the replica is given up: its
    requests then fail until a reload. Restarts to find the guilty request of one batch count once.
    """
    restart_window_s: float = Field(60.0, gt=0, le=MAX_SECONDS)
    """Seconds in which `restarts` are counted."""
    threads: int = Field(1, ge=1, le=MAX_THREADS)
    """Threads of torch and BLAS on each inference rank."""
    chunk_rows: Annotated[int, AfterValidator(batching.check_chunk)] = Field(0, ge=0, lt=MAX_ROWS)
    """Rows that a torch model processes at a time; 0 means: measure the best value at warm-up."""
    derivatives: Kinds = ()
    """Derivatives to serve as `NAME.vjp` and so on: `"vjp"`, `"jvp"`, `"jacobian"`."""
    input_memory: Literal["view", "copy"] | None = None
    """Whether the model reads the clients' memory (`"view"`) or gets copies; without it,
    mpiserve tests at warm-up whether the model writes to its inputs or keeps them.
    """
    warmup: Any = True
    """`true`: warm up with 1 and `max_batch_rows` rows; a list: with these numbers of rows; a
    `.npz` file: with example inputs; `false`: not at all.
    """
    uncertainty: Uncertainty = None
    """Which rows of the answers are not to be trusted: the table `[service.NAME.uncertainty]`."""
    remote: Remote = None
    """The same model at a server, beside this one: the table `[service.NAME.remote]`."""
    placement: Placement = "local"
    """With `remote`: which model answers. `"auto"`: the one that costs less time, as measured.
    `"split"`: the same, and a large batch is divided between both. If the model of `"local"` or
    `"remote"` is away, the other one answers.
    """
    reproducible: Annotated[bool, AfterValidator(batching.check_reproducible)] = False
    """Whether a run gives the same bits as the run before, whatever the timing: a batch holds one
    request of every simulation rank, in the order of ranks, and waits for all of them, up to
    `max_delay_us`, which is then 60 s if not given. Nothing is chosen by measuring.
    """
    cache_rows: CacheRows = 0
    """The most rows that a replica keeps with their answers, for all clients: a row that is equal
    to one of them is answered without the model. 0: none. Only for models that always answer a row
    alike; others are refused.
    """
    cache_step: CacheStep = 0.0
    """With `cache_rows`, which rows are equal: floating numbers are rounded to multiples of this
    before rows are compared, but not for the model. 0: rows of the same bits.
    """

    _name: str = PrivateAttr("")
    _folder: Path = PrivateAttr(Path("."))
    _completed_by: tuple[str, tuple[str, ...]] = PrivateAttr(("", ()))
    _derivative: Derivative | None = PrivateAttr(None)

    @property
    def name(self) -> str:
        """The name by which simulation ranks find the service."""
        return self._name

    @property
    def folder(self) -> Path:
        """The folder of the configuration, where relative paths and modules are looked up."""
        return self._folder

    @property
    def completed_by(self) -> tuple[str, tuple[str, ...]]:
        """The file of the model, and the keys among inputs and outputs that were read from it."""
        return self._completed_by

    @property
    def derivative(self) -> Derivative | None:
        """Of which service this one is a derivative, if it is one."""
        return self._derivative

    def of_version(self, version: str = "") -> ServiceConfig:
        """Return the table as it is served: for a version, with its name in place of {version}.

        An uncertainty is one more output.

        Args:
            version: The name of the version; by default that of the start.

        Raises:
            ConfigError: If the name is not valid, or no key uses it.
        """
        version = version or self.version
        if not version:
            return served(self, version)
        key = f"service.{self.name}.version"
        if not self.version:
            text = f"'{version}' has no meaning: neither model nor options say {VERSION}"
            raise ConfigError(Code.ECONFIG, f"{key}: {text}")
        try:
            keys = {key: filled(getattr(self, key), version) for key in ("model", "options")}
            keys |= {"remote": remote_of(self.remote, version)}
            keys |= {"version": checked_version(version)}
            return served(self.model_copy(update=keys), version)
        except ValueError as error:
            raise ConfigError(Code.ECONFIG, f"{key}: {error}") from None

    @property
    def untrained(self) -> bool:
        """Whether there are no weights in this version."""
        return self.version == UNTRAINED

    @property
    def row_bytes(self) -> int:
        """The bytes of a row of all tensors."""
        return sum(tensor.row_bytes for tensor in (*self.inputs, *self.outputs))

    @property
    def has_free_dims(self) -> bool:
        """Whether requests have dimensions of their own."""
        return any(tensor.is_free for tensor in (*self.inputs, *self.outputs))

    @property
    def warmup_rows(self) -> tuple[int, ...]:
        """The rows of the batches that the model runs before the service is announced."""
        if isinstance(self.warmup, tuple):
            return self.warmup
        if self.warmup is False or (self.task and self.backend == "remote"):
            return ()  # the server of a language model is warm, and takes no empty text
        if self.by_request:  # the model may accept only whole fields
            return (self.max_batch_rows,)
        # A server may take fewer rows than max_batch_rows, which is for all requests of a batch.
        return tuple(sorted({1, 1 if self.backend == "remote" else self.max_batch_rows}))

    @property
    def by_request(self) -> bool:
        """Whether the configuration says that a batch is one request."""
        return self.rows in ("together", "none")

    def kind_of_rows(self, together: bool) -> str:
        """The value of `rows` for a model of which it is known whether rows belong together."""
        if self.rows in ("none", "ragged"):
            return self.rows
        return "together" if together else "independent"

    def of_model(self) -> ServiceConfig:
        """The service as its model sees it, between preprocess and postprocess."""
        functions = {"preprocess": None, "postprocess": None}
        inputs, outputs = self.model_inputs or self.inputs, outputs_of_model(self)
        return self.model_copy(update=functions | {"inputs": inputs, "outputs": outputs})

    @field_validator("backend")
    @classmethod
    def _check_backend(cls, backend: str) -> str:
        if backend in BACKENDS or OBJECT.fullmatch(backend):
            return backend
        raise ValueError(
            f"unknown backend {shown(backend)} {suggest(backend, BACKENDS)}; "
            "a class of your own is named as 'module:Class'"
        )

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str | None, info: ValidationInfo) -> str | None:
        backend = info.data.get("backend")
        if not model and backend in BACKENDS and backend != "echo":
            such = "its name at the server" if backend == "remote" else "'module:callable'"
            text = f"missing; the backend '{backend}' needs one, such as {such}"
            raise ValueError(text)
        return model

    @field_validator("model_inputs", "model_outputs")
    @classmethod
    def _check_model_tensors(cls, tensors: Tensors | None, info: ValidationInfo) -> Tensors | None:
        function = {"model_inputs": "preprocess", "model_outputs": "postprocess"}
        needed = function[info.field_name or ""]
        if tensors is not None and not info.data.get(needed):
            raise ValueError(f"needs {needed}, which makes them differ from the signature")
        return tensors if tensors is None else cls._check_tensors(tensors, info)

    @field_validator("version")
    @classmethod
    def _check_version(cls, version: str, info: ValidationInfo) -> str:
        templates = [info.data.get("model"), info.data.get("options")]
        if filled(templates, "") == templates:
            if version:
                raise ValueError(f"neither model nor options say {VERSION}")
            return version
        if not version:
            raise ValueError(f"missing; {VERSION} is in model or options, so say the first one")
        return checked_version(version)

    @field_validator("inputs", "outputs")
    @classmethod
    def _check_tensors(cls, tensors: Tensors, info: ValidationInfo) -> Tensors:
        echo, inputs = info.data.get("backend") == "echo", info.data.get("inputs", ())
        if echo and info.field_name == "outputs":
            return mirrored(tensors, inputs)
        if not tensors:
            raise ValueError("missing")
        if info.data.get("backend") in ("python", "echo", "remote"):
            check_kept(tensors, info.data["backend"])
        if len(tensors) > MAX_TENSORS:
            raise ValueError(f"at most {MAX_TENSORS} tensors, got {len(tensors)}")
        check_row_dims(tensors, info.data.get("rows"))
        ragged.check_side(tensors, info)
        if info.field_name != "outputs":
            check_unbounded(tensors)
        check_names(tensors)
        return tensors

    @field_validator("max_batch_rows")
    @classmethod
    def _check_rows(cls, rows: int, info: ValidationInfo) -> int:
        return batching.check_most_rows(rows, info.data, MAX_BATCH_ROWS)

    @field_validator("tensor_parallel")
    @classmethod
    def _check_parallel(cls, ranks: int, info: ValidationInfo) -> int:
        backend = info.data.get("backend")
        if ranks > 1 and backend in BACKENDS and backend != "deepspeed":
            raise ValueError(f"{ranks}: the backend '{backend}' runs on 1 rank; use replicas")
        batching.check_fixed(ranks > 1, info.data, "ranks that share a model need fixed shapes")
        return ranks

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str | None, info: ValidationInfo) -> str | None:
        if task is None:
            return task
        if task not in TASKS:
            raise ValueError(f"unknown task {shown(task)} {suggest(task, TASKS)}")
        if info.data.get("backend") not in ("deepspeed", "torch", "remote"):
            raise ValueError("tasks need the backend 'deepspeed', 'torch' or 'remote'")
        return task

    @field_validator("isolate")
    @classmethod
    def _check_isolate(cls, isolate: str | bool, info: ValidationInfo) -> str | bool:
        if isolate is True and _needs_mpi(info.data):
            raise ValueError(f"true: a backend of your own {NEEDS_MPI}: remove one")
        return isolate

    @field_validator("timeout_s", "memory_bytes")
    @classmethod
    def _check_isolated(cls, limit: float, info: ValidationInfo) -> float:
        data = info.data
        if limit and data.get("isolate") == "auto" and _needs_mpi(data):
            raise ValueError(f"limits a child process; a backend of your own {NEEDS_MPI}")
        if limit and data.get("isolate") is False:
            raise ValueError("limits a child process: remove isolate = false")
        return limit

    @property
    def isolated(self) -> bool:
        """Whether the model runs in a child process."""
        if self.isolate == "auto":
            return self.backend != "echo" and not _needs_mpi(vars(self))
        return self.isolate

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, dtype: str | None, info: ValidationInfo) -> str | None:
        return check_model_dtype(dtype, info.data.get("backend"))

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, engine: str, info: ValidationInfo) -> str:
        if problem := engine_problem(engine, info.data):
            raise ValueError(problem)
        return engine

    @field_validator("rows")
    @classmethod
    def _check_task_rows(cls, rows: str | None, info: ValidationInfo) -> str | None:
        batching.check_task_rows(rows, info.data.get("task"))
        ragged.check_rows(rows, info.data)
        return rows

    @field_validator("warmup")
    @classmethod
    def _check_warmup(cls, warmup: Any, info: ValidationInfo) -> bool | str | tuple[int, ...]:
        return batching.warmup_of(warmup, info.data.get("max_batch_rows", 2**31))


def _needs_mpi(service: Mapping[str, Any]) -> bool:
    """Whether a model of several ranks communicates by MPI: DeepSpeed does not need to."""
    return service.get("tensor_parallel", 1) > 1 and service.get("backend") != "deepspeed"
