"""Services that answer with derivatives of another service: their signatures.

For a network y = f(x) of rows, with the Jacobian J = dy/dx of each row:

- vjp: y and the vector-Jacobian product v J, for a vector v of the shape of y;
- jvp: y and the Jacobian-vector product J t, for a tangent t of the shape of x;
- jacobian: y and J itself.

With rows = "ragged" f is the network of a whole request, and v, J and t are those of the request.

The terms are those of torch.func (https://pytorch.org/docs/stable/func.api.html); the theory is in
A. Griewank and A. Walther, Evaluating Derivatives, SIAM 2008, chapter 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, ValidationInfo

from mpiserve.config.tables import (
    COMPLEX_DTYPES,
    MAX_DIMS,
    MAX_TENSORS,
    MODEL_DTYPES,
    NAME_SIZE,
    Names,
    TensorConfig,
    Tensors,
)
from mpiserve.config.values import name_problem, shape_problem, shown, suggest

if TYPE_CHECKING:
    from mpiserve.config.service import ServiceConfig

KINDS = ("vjp", "jvp", "jacobian")
MODULES = ("torch", "deepspeed")  # backends that have a torch module
OPTIONS = ("arguments", "weights")  # those of the module: the others are of what runs it
JACOBIAN_BYTES = 2**26  # of the largest batch of Jacobians


class Derivative(NamedTuple):
    """Of which service another one is a derivative.

    Attributes:
        kind: One of KINDS.
        name: The service.
        inputs: Its inputs.
        outputs: Its outputs.
        counts: How many arrays of counts the module gets, behind all inputs.
    """

    kind: str
    name: str
    inputs: Tensors
    outputs: Tensors
    counts: int = 0


def name_of(service: str, kind: str) -> str:
    """Return the name of a derivative of a service."""
    return f"{service}.{kind}"


def differentiable(tensors: Tensors) -> list[TensorConfig]:
    """Return the tensors that have derivatives: integers and bool have none."""
    return [tensor for tensor in tensors if tensor.dtype in MODEL_DTYPES]


def check_derivatives(kinds: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """Refuse derivatives that a service cannot have.

    Args:
        kinds: The derivatives that it asks for.
        info: The values of its table's keys that were read before.

    Raises:
        ValueError: With the reason.
    """
    if problem := _kind_problem(kinds) or (_problem(kinds, info.data) if kinds else None):
        raise ValueError(problem)
    return kinds


Kinds = Annotated[Names, AfterValidator(check_derivatives)]


def _kind_problem(kinds: tuple[str, ...]) -> str | None:
    for kind in kinds:
        if kind not in KINDS:
            return f"unknown derivative {shown(kind)} {suggest(kind, KINDS)}"
        if kinds.count(kind) > 1:
            return f"'{kind}' is listed twice"
    return None


def _problem(kinds: tuple[str, ...], service: Mapping[str, Any]) -> str | None:
    backend = service.get("backend")
    if backend not in MODULES:
        return f"the backend '{backend}' has none: only torch modules do (torch, deepspeed)"
    for key in ("task", "preprocess", "postprocess"):
        if service.get(key):
            return f"not possible with {key}: remove one of the two"
    if service.get("tensor_parallel", 1) > 1:
        return "not possible with tensor_parallel above 1: remove one of the two"
    rows = service.get("rows")
    if rows == "none":
        return 'only rows have derivatives, and rows is "none"'
    if "jacobian" in kinds and rows in ("together", "ragged"):
        return f'a Jacobian of each row needs independent rows, and rows is "{rows}"'
    return _tensor_problem(service)


def _tensor_problem(service: Mapping[str, Any]) -> str | None:
    for side in ("inputs", "outputs"):
        tensors = service.get(side, ())
        for tensor in tensors:
            if tensor.is_free and not tensor.dimension:
                return f"'{tensor.name}' has free dimensions: derivatives need fixed shapes"
            if tensor.dtype in COMPLEX_DTYPES:
                return f"'{tensor.name}' is {tensor.dtype}: only real numbers have derivatives here"
        if tensors and not differentiable(tensors):
            names = ", ".join(f"'{tensor.name}' is {tensor.dtype}" for tensor in tensors)
            return f"none of the {side} has floating numbers: {names}"
    return None


def derived(service: ServiceConfig, kind: str) -> ServiceConfig:
    """Make the service that answers with a derivative of another one, on the same ranks.

    Raises:
        ValueError: If its signature is not possible, with the reason.
    """
    inputs, outputs = SIGNATURES[kind](service.inputs, service.outputs)
    _check(service, kind, inputs, outputs)
    options = {key: value for key, value in service.options.items() if key in OPTIONS}
    update: dict[str, Any] = {
        "backend": "torch",
        "engine": "eager",
        "options": options,
        "derivatives": (),
        "uncertainty": None,
    }
    update |= {"inputs": inputs, "outputs": outputs, "cores": 0, "gpus": 0}
    made = service.model_copy(update=update)
    if kind == "jacobian":
        most = min(service.max_batch_rows, max(1, JACOBIAN_BYTES // made.row_bytes))
        made = made.model_copy(update={"max_batch_rows": most, "warmup": _warmup(service, most)})
    made._name = name_of(service.name, kind)
    counts = len(service.counts)
    made._derivative = Derivative(kind, service.name, service.inputs, service.outputs, counts)
    made._completed_by = ("", ())
    return made


def _warmup(service: ServiceConfig, most: int) -> Any:
    rows = service.warmup
    return tuple(sorted({min(n, most) for n in rows})) if isinstance(rows, tuple) else rows


def _vjp(inputs: Tensors, outputs: Tensors) -> tuple[Tensors, Tensors]:
    vectors = [_like(f"vector_{y.name}", y) for y in differentiable(outputs)]
    products = [_like(f"vjp_{x.name}", x) for x in differentiable(inputs)]
    return (*inputs, *vectors), (*outputs, *products)


def _jvp(inputs: Tensors, outputs: Tensors) -> tuple[Tensors, Tensors]:
    tangents = [_like(f"tangent_{x.name}", x) for x in differentiable(inputs)]
    products = [_like(f"jvp_{y.name}", y) for y in differentiable(outputs)]
    return (*inputs, *tangents), (*outputs, *products)


def _jacobian(inputs: Tensors, outputs: Tensors) -> tuple[Tensors, Tensors]:
    blocks = [
        _like(f"d{y.name}_d{x.name}", y, (*y.shape, *x.shape[1:]))
        for y in differentiable(outputs)
        for x in differentiable(inputs)
    ]
    return inputs, (*outputs, *blocks)


SIGNATURES = {"vjp": _vjp, "jvp": _jvp, "jacobian": _jacobian}


def _like(name: str, tensor: TensorConfig, shape: tuple[int, ...] = ()) -> TensorConfig:
    if problem := name_problem(name, NAME_SIZE) or shape_problem(shape, MAX_DIMS):
        raise ValueError(problem)
    said: dict[str, Any] = {"shape": shape or tensor.said}
    if tensor.dimension:
        said["max_shape"] = tensor.max_shape
    return TensorConfig(name=name, dtype=tensor.dtype, convert=tensor.convert, **said)


def _check(service: ServiceConfig, kind: str, inputs: Tensors, outputs: Tensors) -> None:
    if problem := name_problem(name_of(service.name, kind), NAME_SIZE):
        raise ValueError(problem)
    for side, tensors in (("inputs", inputs), ("outputs", outputs)):
        names = [tensor.name for tensor in tensors]
        if len(names) > MAX_TENSORS:
            text = f"{len(names)} {side}, at most {MAX_TENSORS}"
            raise ValueError(f"'{kind}' has {text}")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"'{kind}' has two {side} '{twice[0]}': rename a tensor")
