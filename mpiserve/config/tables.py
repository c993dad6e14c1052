"""The base of all tables of the configuration, and the table of a tensor."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StrictInt,
    StrictStr,
    ValidationInfo,
    model_validator,
)

from mpiserve.config.values import (
    max_shape_problem,
    name_problem,
    shape_problem,
    shown,
    suggest,
)

# In the order of mpiserve_dtype: the position is the number.
DTYPES = (
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "uint16",
    "uint32",
    "uint64",
    "complex64",
    "complex128",
)
DTYPE_BYTES = dict(zip(DTYPES, (1, 1, 1, 2, 4, 8, 2, 2, 4, 8, 2, 4, 8, 8, 16), strict=True))
MODEL_DTYPES = ("float16", "bfloat16", "float32", "float64")
COMPLEX_DTYPES = ("complex64", "complex128")
MAX_DIMS = 8
MAX_TENSORS = 16  # inputs, or outputs
MAX_FREE = 32  # free dimensions of the inputs, or of the outputs
NAME_SIZE = 64
INDEX_DTYPES = ("int32", "int64")


def _dtype(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {shown(name)} {suggest(name, DTYPES)}")
    return name


def _convert(convert: bool | None, info: ValidationInfo) -> bool | None:
    dtype = info.data.get("dtype", "float32")
    if convert is not None and dtype not in (*MODEL_DTYPES, *COMPLEX_DTYPES):
        raise ValueError(f"a tensor of {dtype} is never converted")
    return convert


def _ordered(bound: float | None, info: ValidationInfo) -> float | None:
    dtype = info.data.get("dtype", "float32")
    if bound is not None and dtype in COMPLEX_DTYPES:
        raise ValueError(f'{dtype} has no order, so it has no bounds; check = "finite" can be set')
    return bound


def _above_min(most: float | None, info: ValidationInfo) -> float | None:
    least = info.data.get("min")
    if most is not None and least is not None and not least <= most:
        raise ValueError(f"{most:g} is below min = {least:g}")
    return most


def check_name(name: str) -> str:
    """Refuse a name that the C library cannot hold."""
    if problem := name_problem(name, NAME_SIZE):
        raise ValueError(problem)
    return name


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if problem := shape_problem(shape, MAX_DIMS):
        raise ValueError(problem)
    return shape


def _bounded(most: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
    shape = info.data.get("shape")
    if shape is not None and (problem := max_shape_problem(shape, most, MAX_FREE)):
        raise ValueError(problem)
    return most


def _index(name: str | None, info: ValidationInfo) -> str | None:
    if name is not None and info.data.get("dtype", "int64") not in INDEX_DTYPES:
        raise ValueError(f"indices are {' or '.join(INDEX_DTYPES)}, got {info.data['dtype']}")
    return name


def _without_name(shape: Any) -> tuple[str, Any]:
    """Split the name of the first dimension from a shape: it is -1 then."""
    if not isinstance(shape, (list, tuple)) or not any(isinstance(dim, str) for dim in shape):
        return "", shape
    if any(isinstance(dim, str) for dim in shape[1:]):
        raise ValueError(f"shape: only the first dimension can have a name, got {shown(shape)}")
    return check_name(shape[0]), (-1, *shape[1:])


def as_tuple(value: Any) -> Any:
    """Convert a list of the file to a tuple."""
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[StrictStr, ...], BeforeValidator(as_tuple)]


class Table(BaseModel):
    """The base of all tables: strict types, and no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # they describe the keys in the configuration reference
    )


class TensorConfig(Table):
    """One tensor of a signature; its first dimension is -1, the number of rows, if it has rows."""

    name: Annotated[str, AfterValidator(check_name)]
    """The name by which a call, or the model, finds the tensor."""
    dtype: Annotated[str, AfterValidator(_dtype)]
    """The type of the elements, as requests carry it."""
    shape: Annotated[tuple[StrictInt, ...], BeforeValidator(as_tuple), AfterValidator(_shape)]
    """The dimensions: first -1, which stands for the rows, then positive sizes, or -1 for a free
    dimension, which each request has its own of. With `rows = "none"` there are no rows, and `[]`
    is a scalar. With `rows = "ragged"` the first dimension may have a name in place of -1, as in
    `["nodes", 16]`: it is as long in each tensor of a request that has this name.
    """
    max_shape: Annotated[
        tuple[StrictInt, ...] | None,
        BeforeValidator(as_tuple),
        Field(validate_default=True),
        AfterValidator(_bounded),
    ] = None
    """With free dimensions: the same as `shape`, with the largest size of each free dimension in
    place of -1. Memory is laid out for these. The rows stay -1.
    """
    index_of: Annotated[str | None, AfterValidator(_index)] = None
    """Of an input, with `rows = "ragged"`: its values, int32 or int64, are row numbers of this
    named dimension, from 0, in their request. The model gets those of the batch.
    """
    convert: Annotated[bool | None, AfterValidator(_convert)] = None
    """Whether to convert between this dtype and the model's: `true` silently, `false` never;
    without it, convert and log what that loses. `onnx` converts only with `true`.
    """
    min: Annotated[float | None, AfterValidator(_ordered)] = None
    """Of an output: the least value that is an answer; see `check`."""
    max: Annotated[float | None, AfterValidator(_ordered), AfterValidator(_above_min)] = None
    """Of an output: the greatest value that is an answer; see `check`."""
    units: StrictStr = ""
    """What its values are counted in, such as `"K"`: for whoever reads a capture."""

    _dimension: str = PrivateAttr("")

    @model_validator(mode="wrap")
    @classmethod
    def _named(cls, table: Any, handler: ModelWrapValidatorHandler[TensorConfig]) -> TensorConfig:
        name = ""
        if isinstance(table, dict) and "shape" in table:
            name, shape = _without_name(table["shape"])
            table = table | {"shape": shape}
        made = handler(table)
        made._dimension = name or made._dimension
        return made

    @property
    def dimension(self) -> str:
        """The name of the first dimension; "" if it has none."""
        return self._dimension

    @property
    def said(self) -> list[int | str]:
        """The shape as the configuration has it."""
        return [self._dimension, *self.shape[1:]] if self._dimension else list(self.shape)

    @property
    def largest(self) -> tuple[int, ...]:
        """The shape with the largest free dimensions; -1 first if it has rows."""
        return self.shape if self.max_shape is None else self.max_shape

    @property
    def has_rows(self) -> bool:
        """Whether the first dimension is the number of rows."""
        return self.largest[:1] == (-1,)

    @property
    def is_free(self) -> bool:
        """Whether it has free dimensions."""
        return self.max_shape is not None and self.max_shape != self.shape

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The largest dimensions of a row; of a tensor without rows, all dimensions."""
        return self.largest[1:] if self.has_rows else self.largest

    def fits(self, shape: tuple[int, ...], rows: int | None) -> bool:
        """Whether an array of `rows` rows, or without (None), may have this shape."""
        dims = self.shape[1:] if self.has_rows else self.shape
        if rows is not None:
            dims = (rows, *dims)
        most = self.dims(rows)
        return len(shape) == len(dims) and all(
            0 <= size <= bound if dim == -1 else size == dim
            for size, dim, bound in zip(shape, dims, most, strict=True)
        )

    def dims(self, rows: int | None) -> tuple[int, ...]:
        """The largest dimensions of an array of `rows` rows, or without rows (None)."""
        return self.row_shape if rows is None else (rows, *self.row_shape)

    @property
    def row_bytes(self) -> int:
        """The bytes of the largest row."""
        return prod(self.row_shape) * DTYPE_BYTES[self.dtype]


Tensors = Annotated[tuple[TensorConfig, ...], BeforeValidator(as_tuple)]
