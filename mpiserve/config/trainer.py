"""The table `[trainer.NAME]`: a rank that trains the model of a service while the job runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, StrictStr, field_validator

from mpiserve.config.tables import Table
from mpiserve.config.uncertainty import MODULES, seen
from mpiserve.config.values import MAX_SECONDS, MAX_THREADS, OBJECT, check_object, suggest
from mpiserve.config.version import VERSION

if TYPE_CHECKING:
    from mpiserve.config.file import Config
    from mpiserve.config.service import ServiceConfig

MAX_PAIRS = 2**31
STATES = ("float16", "float32", "float64")  # dtypes of what a network is trained with
NUMBERS = ("bool", "uint8", "int8", "int16", "int32", "int64", *STATES)

Problem = tuple[str, str]  # the key of a table, and what is wrong


class TrainerConfig(Table):
    """One table `[trainer.NAME]`: a rank that learns from recorded pairs and publishes versions."""

    service: StrictStr = ""
    """The service whose model it trains; by default the one of the same name. Its pairs come from
    the capture: what the simulation records, and what its fallback answers.
    """
    ranks: int = Field(1, ge=1)
    """The ranks of the trainer: 1."""
    folder: StrictStr = "learned"
    """Where checkpoint, reservoir, progress and picture are, from the folder of this file. A job
    that finds them there goes on from them.
    """
    reservoir_rows: int = Field(100_000, ge=64, le=MAX_PAIRS)
    """The most pairs that are kept in memory, and in the folder. Half of them are the newest, the
    others a random share of all that came before.
    """
    new_share: float = Field(0.5, ge=0, le=1)
    """The share of a batch that is drawn from the newest pairs; the others are from the kept ones.
    """
    held_out: float = Field(0.1, gt=0, lt=1)
    """The share of the pairs that validate, and are never trained with."""
    first_rows: int = Field(1000, ge=32, le=MAX_PAIRS)
    """The pairs that must be there before training begins. What the network scales its tensors by
    is taken from them.
    """
    batch_rows: int = Field(256, ge=1, le=2**24)
    """The pairs of a training step."""
    round_steps: int = Field(200, ge=1, le=10**9)
    """The training steps between two validations."""
    step: Annotated[StrictStr | None, AfterValidator(check_object)] = None
    """A function `step(network, optimizer, inputs, outputs)` that makes a training step and returns
    the loss, in place of the ready one. `inputs` and `outputs` are dicts of tensors by name.
    """
    loss: Literal["mse", "l1", "huber"] = "mse"
    """Of the ready step: of the differences, each in units of the standard deviation of its output.
    """
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """The optimizer of torch."""
    rate: float = Field(1e-3, gt=0, le=10)
    """The learning rate at the start."""
    schedule: Literal["plateau", "constant"] = "plateau"
    """`"plateau"`: the rate is halved when `patience` validations in a row found nothing better.
    When it is below a hundredth of `rate`, the trainer rests until a twentieth more pairs are
    there, and then begins again at a quarter of `rate`.
    """
    patience: int = Field(8, ge=1, le=10**6)
    """The validations without a better result after which the rate is halved."""
    largest_error: float = Field(0.5, gt=0, le=1)
    """The largest error of a version that is published: the root mean square over the held-out
    pairs, in units of the standard deviation of each output. 1 is the error of the mean.
    """
    least_gain: float = Field(0.1, ge=0, lt=1)
    """By which share the error of a version must be below that of the one that answers."""
    least_s: float = Field(5.0, ge=0, le=MAX_SECONDS)
    """The least time in seconds between two versions; choose several times what loading one takes.
    """
    rollback: float = Field(1.5, ge=1, le=1e6)
    """The version before is loaded again when the error of the one that answers, over the newest
    pairs, is more than this many times its own.
    """
    checkpoint_s: float = Field(10.0, gt=0, le=MAX_SECONDS)
    """Seconds between two checkpoints."""
    threads: int = Field(1, ge=1, le=MAX_THREADS)
    """Threads of torch and BLAS that train."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of the first weights, and of what is drawn."""

    @field_validator("ranks")
    @classmethod
    def _check_ranks(cls, ranks: int) -> int:
        if ranks > 1:
            text = "a trainer has one rank; it may have several threads, or a GPU"
            raise ValueError(f"{ranks}: {text}")
        return ranks


def trained(config: Config, name: str) -> ServiceConfig:
    """Return the service whose model a trainer trains, as it is configured."""
    return config.service[config.trainer[name].service or name]


def first_problem(config: Config) -> Problem | None:
    """Find what trainers, and services without weights, cannot have."""
    for service in config.services:
        for key, text in _untrained(service) if service.untrained else ():
            return f"service.{service.name}.{key}", text
    of: dict[str, str] = {}
    for name, table in config.trainer.items():
        wanted = table.service or name
        if wanted not in config.service:
            text = f"no service '{wanted}' {suggest(wanted, [*config.service])}"
            return f"trainer.{name}.service", text
        if of.setdefault(wanted, name) != name:
            return f"trainer.{name}.service", f"'{wanted}' has the trainer '{of[wanted]}' already"
        service = config.service[wanted]
        for text in (*_captured(config, wanted), *_service(service), *_step(service, table)):
            return f"trainer.{name}", text
    return None


def _untrained(service: ServiceConfig) -> Iterator[Problem]:
    """Yield what a service needs that begins without weights."""
    if service.uncertainty is None:
        text = "'untrained' says that no row is trusted: add a table [service.NAME.uncertainty]"
        yield "version", text.replace("NAME", service.name)
    if service.derivatives:
        yield "derivatives", "not with version = 'untrained': there is nothing to derive"
    if service.engine not in ("auto", "eager"):
        yield "engine", f"'{service.engine}' has no model to run in version 'untrained'; use 'auto'"
    if service.rows == "none":
        yield "rows", "'none' has no rows that could be trusted, as version = 'untrained' needs"
    for tensor in service.outputs:
        if tensor.dtype not in (*STATES, "bfloat16"):
            text = f"'{tensor.name}' is {tensor.dtype}, which has no value for 'no answer'"
            yield "outputs", f"{text}, as version = 'untrained' needs"


def _captured(config: Config, service: str) -> Iterator[str]:
    table = config.capture
    if table is None:
        yield "it learns from what is captured: add a table [capture]"
    elif table.services and service not in table.services:
        yield f"it learns from what is captured: add '{service}' to capture.services"


def _step(service: ServiceConfig, table: TrainerConfig) -> Iterator[str]:
    if service.uncertainty and service.uncertainty.method == "model" and not table.step:
        text = "needs step: the ready one trains outputs, and no uncertainty that a model says"
        yield f"the service '{service.name}' {text}"


def _service(service: ServiceConfig) -> Iterator[str]:
    """Yield why a trainer cannot train the model of a service."""
    of = f"the service '{service.name}'"
    weights = str(service.options.get("weights", ""))
    if service.backend not in MODULES or not OBJECT.fullmatch(service.model or ""):
        yield f"{of} needs the backend torch or deepspeed, and a model 'module:callable'"
    if VERSION not in weights or weights.endswith(".index.json"):
        text = "needs options.weights with {VERSION}, a .safetensors file: each version has its own"
        yield f"{of} {text}".replace("{VERSION}", VERSION)
    if service.preprocess or service.postprocess or service.model_outputs:
        text = "has preprocess, postprocess or model_outputs, but its pairs are of the signature"
        yield f"{of} {text}: it would be trained with what is around it; do it in the model"
    if service.rows not in (None, "independent") or service.has_free_dims:
        text = (
            "needs fixed shapes and independent rows: batches are drawn from those of all requests"
        )
        yield f"{of} {text}"
    for tensor in (*service.inputs, *seen(service)):
        is_output = tensor in service.outputs
        if tensor.dtype not in (STATES if is_output else NUMBERS):
            yield f"{of}: no network is trained with '{tensor.name}', which is {tensor.dtype}"
    yield from (f"{of}: {text}" for text in _serving(service))
    table = service.uncertainty
    data = (table.data or "") if table and table.method == "distance" else f"{VERSION}.npz"
    if VERSION not in data or not data.endswith(".npz"):
        text = f"uncertainty.data must say {VERSION}, and end in .npz"
        yield f"{of}: {text}: the trainer writes the inputs of each version there"


def _serving(service: ServiceConfig) -> Iterator[str]:
    """Yield why a service cannot answer with versions that come while it serves."""
    if service.reload == "in-place":
        yield "with reload = 'in-place' replicas may answer with different versions: remove it"
    if service.reproducible:
        yield "reproducible, but when a version answers depends on time: remove it"
    if service.engine == "compiled":
        yield "engine = 'compiled', but nothing is compiled while the job runs: use 'auto'"
