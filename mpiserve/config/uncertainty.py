"""The table `[service.NAME.uncertainty]`: which rows of the answers are not to be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictStr, ValidationInfo

from mpiserve.config.tables import MAX_TENSORS, Names, Table, TensorConfig, Tensors
from mpiserve.config.values import OBJECT, suggest
from mpiserve.config.version import VERSION, filled

if TYPE_CHECKING:
    from mpiserve.config.service import ServiceConfig

NAME = "uncertainty"  # of the output that clients do not see
TRUSTED = "trusted"  # of what clients of a gateway see in its place
MODULES = ("torch", "deepspeed")  # backends that have a torch module


class UncertaintyConfig(Table):
    """The table `[service.NAME.uncertainty]`: a number for each row, and how much is too much.

    Rows above the limit go to the fallback of the simulation, or are marked.
    """

    method: Literal["model", "ensemble", "distance"]
    """What says how uncertain a row is. `"model"`: the model itself, by one more output behind the
    others, named `uncertainty`, float32 [rows]. `"ensemble"`: how much several networks differ,
    which are the model with other weights; their mean is the answer. `"distance"`: how far the
    inputs are from the training data (scikit-learn: `mpiserve[trust]`).
    """
    limit: float = Field(gt=0)
    """The largest uncertainty of a row that is trusted. One that is not a number is above it."""
    weights: Names = ()
    """Of an ensemble: the safetensors files of its other networks, at least one. The first network
    is the model with its own weights (`options.weights`). If the service has versions, each name
    says `{version}`.
    """
    scales: dict[StrictStr, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Of an ensemble: what counts as 1, by output. The uncertainty of a row is the largest standard
    deviation among its values, each divided by the scale of its output, or by 1.
    """
    data: StrictStr | None = None
    """Of a distance: the inputs that the model was trained with. A capture of this service, a
    folder or a file `.h5`, of which recorded pairs count (source "physics"); or a file `.npz` with
    an array for each input. `{version}` is replaced, in `weights` too.
    """
    neighbours: int = Field(5, ge=1, le=1000)
    """Of a distance: how many of the nearest training rows count. The uncertainty of a row is its
    mean distance to them, where 1 is the distance that 99 % of the training rows stay within.
    """


def _problem(service: Mapping[str, Any], texts: str) -> str | None:
    """Find what no method can have."""
    if service.get("backend") == "echo":
        return "the backend 'echo' has no model to doubt"
    if service.get("task"):
        return "not with this task: a language model has no uncertainty of rows"
    if service.get("tensor_parallel", 1) > 1:
        return "not with tensor_parallel above 1: remove one of the two"
    tensors = (*service.get("inputs", ()), *service.get("outputs", ()))
    if service.get("rows") == "ragged" or any(tensor.is_free for tensor in tensors):
        return "not with free dimensions: it needs fixed shapes"
    outputs = [tensor.name for tensor in service.get("outputs", ())]
    if VERSION in texts and not service.get("version"):
        return f"it says {VERSION}, which neither model nor options of the service do"
    of_model = [tensor.name for tensor in service.get("model_outputs") or ()]
    for name, names in ((NAME, outputs), (NAME, of_model), (TRUSTED, outputs)):
        if name in names:
            return f"an output is named '{name}', as the one behind them is: rename it"
    if len(outputs) == MAX_TENSORS:
        return f"it is one more output, and there are {MAX_TENSORS} already"
    return None


def _model_problem(_table: UncertaintyConfig, service: Mapping[str, Any]) -> str | None:
    if service.get("derivatives"):
        return "not with derivatives, which an uncertainty has none of: remove one of the two"
    return None


def _ensemble_problem(table: UncertaintyConfig, service: Mapping[str, Any]) -> str | None:
    backend = service.get("backend")
    if backend not in MODULES:
        return f"the backend '{backend}' has no network with other weights (torch and deepspeed do)"
    if not OBJECT.fullmatch(service.get("model") or ""):
        return "a file has weights of its own: name a model as 'module:callable'"
    if service.get("derivatives"):
        return "not with derivatives, which are those of one network: remove one of the two"
    if problem := _weights_problem(table.weights, service):
        return problem
    known = [tensor.name for tensor in service.get("model_outputs") or service.get("outputs", ())]
    for name in table.scales:
        if name not in known:
            return f"scales: the model has no output '{name}' {suggest(name, known)}"
    return None


def _weights_problem(weights: Sequence[str], service: Mapping[str, Any]) -> str | None:
    """Find files with which networks would not differ, or would be of different versions."""
    if not weights:
        return "weights is missing: an ensemble has at least two networks"
    every = [str((service.get("options") or {}).get("weights")), *weights]
    for i, name in enumerate(every):
        if name in every[:i]:
            return f"weights: '{name}' is there twice, beside options.weights: it would not differ"
        if i and service.get("version") and VERSION not in name:
            text = f"weights: the model has versions, so '{name}' must say {VERSION}, too"
            return f"{text}: otherwise an ensemble would be of two versions after a reload"
    return None


def _distance_problem(table: UncertaintyConfig, service: Mapping[str, Any]) -> str | None:
    if service.get("engine") == "compiled":
        return "distances are found in Python, not by the engine 'compiled'; use 'auto'"
    return None if table.data else "data is missing: the inputs that the model was trained with"


_METHODS: dict[str, Callable[[UncertaintyConfig, Mapping[str, Any]], str | None]] = {
    "model": _model_problem,
    "ensemble": _ensemble_problem,
    "distance": _distance_problem,
}
_KEYS = {"weights": "ensemble", "scales": "ensemble", "data": "distance", "neighbours": "distance"}


def _check(table: UncertaintyConfig | None, info: ValidationInfo) -> UncertaintyConfig | None:
    """Refuse the table beside what cannot have it, and keys of another method."""
    if table is None:
        return None
    for key, method in _KEYS.items():
        default = UncertaintyConfig.model_fields[key].get_default(call_default_factory=True)
        if getattr(table, key) != default and table.method != method:
            raise ValueError(f"{key} is for method = '{method}', not '{table.method}'")
    texts = "".join((table.data or "", *table.weights))
    if problem := _problem(info.data, texts) or _METHODS[table.method](table, info.data):
        raise ValueError(problem)
    return table


Uncertainty = Annotated[UncertaintyConfig | None, AfterValidator(_check)]


def seen(service: ServiceConfig) -> Tensors:
    """Return the outputs that clients see."""
    return tuple(tensor for tensor in service.outputs if not is_hidden(service, tensor))


def is_hidden(service: ServiceConfig, tensor: TensorConfig) -> bool:
    """Whether an output is the one that clients do not see."""
    return service.uncertainty is not None and tensor.name == NAME


def served(service: ServiceConfig, version: str) -> ServiceConfig:
    """Return a table in a version, with the uncertainty as one more output."""
    table = service.uncertainty
    if table is None:
        return service
    table = table.model_copy(
        update={
            "weights": tuple(filled([*table.weights], version)),
            "data": filled(table.data or "", version) or None,
        }
    )
    shape = () if service.rows == "none" else (-1,)
    output = TensorConfig(name=NAME, dtype="float32", shape=shape, convert=True, max=table.limit)
    outputs = (*seen(service), output)
    return service.model_copy(update={"outputs": outputs, "uncertainty": table})


def outputs_of_model(service: ServiceConfig) -> Tensors:
    """Return the outputs of the model between preprocess and postprocess."""
    hidden = tuple(tensor for tensor in service.outputs if is_hidden(service, tensor))
    return (*(service.model_outputs or seen(service)), *hidden)
