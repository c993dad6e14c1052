"""The TOML file of the inference ranks, checked before anything starts."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mpiserve.errors import Code, ConfigError

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
)
MODEL_DTYPES = ("float16", "bfloat16", "float32", "float64")
MAX_DIMS = 8
MAX_TENSORS = 16
NAME_SIZE = 64

BACKENDS = ("deepspeed", "torch", "onnx", "python", "echo")
TASKS = ("generate", "embed")
VERSION = "{version}"  # in a model or an option: the name of a version stands there
OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # "module:object"


def _suggest(word: str, known: tuple[str, ...] | list[str]) -> str:
    near = get_close_matches(word, known, 1)
    return f"(did you mean '{near[0]}'?)" if near else f"(one of: {', '.join(known)})"


def _dtype(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"unknown dtype '{name}' {_suggest(name, DTYPES)}")
    return name


def _name(name: str) -> str:
    if not 0 < len(name.encode()) < NAME_SIZE:
        raise ValueError(
            f"a name has 1 to {NAME_SIZE - 1} bytes, '{name}' has {len(name.encode())}"
        )
    return name


def _object(spec: str | None) -> str | None:
    if spec is not None and not OBJECT.fullmatch(spec):
        raise ValueError(f"must be 'module:callable', got '{spec}'")
    return spec


def _version(version: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", version, re.ASCII) or len(version) >= NAME_SIZE:
        raise ValueError(f"a version is letters, digits and any of _.+-, got '{version}'")
    return version


def _filled(value: Any, version: str) -> Any:
    """Put the name of a version into all texts of a value."""
    if isinstance(value, str):
        return value.replace(VERSION, version)
    if isinstance(value, dict):
        return {key: _filled(item, version) for key, item in value.items()}
    return [_filled(item, version) for item in value] if isinstance(value, list) else value


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape or shape[0] != -1:
        raise ValueError(f"the first dimension is the rows and must be -1, got {list(shape)}")
    if any(size < 1 for size in shape[1:]):
        raise ValueError(f"every dimension after the first must be positive, got {list(shape)}")
    if len(shape) > MAX_DIMS:
        raise ValueError(f"at most {MAX_DIMS} dimensions, got {len(shape)}")
    return shape


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TensorConfig(_Table):
    """One tensor of a signature; its first dimension, -1, is the rows."""

    name: Annotated[str, AfterValidator(_name)]
    dtype: Annotated[str, AfterValidator(_dtype)]
    shape: Annotated[tuple[StrictInt, ...], BeforeValidator(_tuple), AfterValidator(_shape)]


Tensors = Annotated[tuple[TensorConfig, ...], BeforeValidator(_tuple)]


class ServiceConfig(_Table):
    """One table `[service.NAME]`: a model, its signature and its batching policy."""

    backend: str = "deepspeed"
    model: Annotated[str | None, Field(validate_default=True)] = None
    task: str | None = None
    preprocess: Annotated[str | None, AfterValidator(_object)] = None
    postprocess: Annotated[str | None, AfterValidator(_object)] = None
    options: dict[str, Any] = Field(default_factory=dict)
    version: Annotated[str, Field(validate_default=True)] = ""
    reload: Literal["beside", "in-place"] = "beside"
    inputs: Tensors
    outputs: Annotated[Tensors, Field(validate_default=True)] = ()
    model_inputs: Tensors | None = None
    model_outputs: Tensors | None = None
    replicas: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    peer_timeout_s: float = Field(300.0, gt=0)
    dtype: str = "float32"
    max_batch_rows: int = Field(4096, ge=1, lt=2**30)
    max_delay_us: int = Field(200, ge=0, lt=2**31)
    pool_bytes: int = Field(0, ge=0)
    stickiness: float = Field(0.25, gt=0, le=1)
    max_queue_rows: int = Field(0, ge=0, lt=2**62)
    on_full: Literal["wait", "reject"] = "wait"
    threads: int = Field(1, ge=1)
    chunk_rows: int = Field(0, ge=0)
    warmup: Any = True  # a bool, or rows of the batches

    _name: str = PrivateAttr("")
    _folder: Path = PrivateAttr(Path("."))

    @property
    def name(self) -> str:
        """The name by which simulation ranks find the service."""
        return self._name

    @property
    def folder(self) -> Path:
        """Where the configuration lies: relative paths and modules are looked up there."""
        return self._folder

    def of_version(self, version: str = "") -> ServiceConfig:
        """Give the table for a version, whose name stands where {version} was.

        Args:
            version: Its name; that of the start if not given.

        Raises:
            ConfigError: If it is no name, or has no meaning here.
        """
        version = version or self.version
        if not version:
            return self
        key = f"service.{self.name}.version"
        if not self.version:
            text = f"'{version}' has no meaning: neither model nor options say {VERSION}"
            raise ConfigError(Code.ECONFIG, f"{key}: {text}")
        try:
            filled = {key: _filled(getattr(self, key), version) for key in ("model", "options")}
            return self.model_copy(update=filled | {"version": _version(version)})
        except ValueError as error:
            raise ConfigError(Code.ECONFIG, f"{key}: {error}") from None

    @property
    def warmup_rows(self) -> tuple[int, ...]:
        """Rows of the batches that the model sees before the service is announced."""
        if isinstance(self.warmup, tuple):
            return self.warmup
        return tuple(sorted({1, self.max_batch_rows})) if self.warmup else ()

    def of_model(self) -> ServiceConfig:
        """The service as its model sees it, between preprocess and postprocess."""
        functions = {"preprocess": None, "postprocess": None}
        inputs, outputs = self.model_inputs or self.inputs, self.model_outputs or self.outputs
        return self.model_copy(update=functions | {"inputs": inputs, "outputs": outputs})

    @field_validator("backend")
    @classmethod
    def _check_backend(cls, backend: str) -> str:
        if backend in BACKENDS or OBJECT.fullmatch(backend):
            return backend
        raise ValueError(
            f"unknown backend '{backend}' {_suggest(backend, BACKENDS)}; "
            "a class of your own is named as 'module:Class'"
        )

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str | None, info: ValidationInfo) -> str | None:
        backend = info.data.get("backend")
        if not model and backend in ("deepspeed", "torch", "onnx", "python"):
            raise ValueError(
                f"missing; the backend '{backend}' needs one, such as 'module:callable'"
            )
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
        if _filled(templates, "") == templates:
            if version:
                raise ValueError(f"neither model nor options say {VERSION}")
            return version
        if not version:
            raise ValueError(f"missing; {VERSION} is in model or options, so say the first one")
        return _version(version)

    @field_validator("inputs", "outputs")
    @classmethod
    def _check_tensors(cls, tensors: Tensors, info: ValidationInfo) -> Tensors:
        echo, inputs = info.data.get("backend") == "echo", info.data.get("inputs", ())
        if echo and info.field_name == "outputs":
            return _mirrored(tensors, inputs)
        if not tensors:
            raise ValueError("missing")
        if len(tensors) > MAX_TENSORS:
            raise ValueError(f"at most {MAX_TENSORS} tensors, got {len(tensors)}")
        names = [tensor.name for tensor in tensors]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tensors are named '{name}'")
        return tensors

    @field_validator("tensor_parallel")
    @classmethod
    def _check_parallel(cls, ranks: int, info: ValidationInfo) -> int:
        backend = info.data.get("backend")
        if ranks > 1 and backend in BACKENDS and backend != "deepspeed":
            raise ValueError(f"{ranks}: the backend '{backend}' runs on 1 rank; use replicas")
        return ranks

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str | None, info: ValidationInfo) -> str | None:
        if task is None:
            return task
        if task not in TASKS:
            raise ValueError(f"unknown task '{task}' {_suggest(task, TASKS)}")
        if info.data.get("backend") not in ("deepspeed", "torch"):
            raise ValueError("tasks are of the backends 'deepspeed' and 'torch'")
        return task

    @field_validator("on_full")
    @classmethod
    def _check_on_full(cls, on_full: str, info: ValidationInfo) -> str:
        if on_full == "reject" and not info.data.get("max_queue_rows", 1):
            raise ValueError("'reject' needs max_queue_rows")
        return on_full

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, dtype: str) -> str:
        if dtype not in MODEL_DTYPES:
            raise ValueError(f"unknown model dtype '{dtype}' {_suggest(dtype, MODEL_DTYPES)}")
        return dtype

    @field_validator("warmup")
    @classmethod
    def _check_warmup(cls, warmup: Any, info: ValidationInfo) -> bool | tuple[int, ...]:
        if isinstance(warmup, bool):
            return warmup
        if not isinstance(warmup, list) or not all(type(rows) is int for rows in warmup):
            raise ValueError(f"must be true, false or a list of rows, got {warmup!r}")
        limit = info.data.get("max_batch_rows", 2**31)
        if not all(0 < rows <= limit for rows in warmup):
            raise ValueError(f"rows must be 1 to max_batch_rows, got {warmup}")
        return tuple(warmup)


def _mirrored(outputs: Tensors, inputs: Tensors) -> Tensors:
    if not outputs:
        return inputs
    if [(t.dtype, t.shape) for t in outputs] != [(t.dtype, t.shape) for t in inputs]:
        raise ValueError("the backend 'echo' answers with its inputs: dtypes and shapes must agree")
    return outputs


class PartitionConfig(_Table):
    """The table `[partition]`: which ranks of one program infer."""

    placement: Literal["tail", "per-node", "dedicated"] = "tail"
    per_node: Annotated[int | None, Field(ge=1)] = None
    bind: bool = False
    ranks: Annotated[tuple[StrictInt, ...] | None, BeforeValidator(_tuple)] = None

    @field_validator("ranks")
    @classmethod
    def _check_ranks(cls, ranks: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if ranks == ():
            raise ValueError("at least one rank must infer")
        for rank in ranks or ():
            if rank < 0:
                raise ValueError(f"rank {rank} is negative")
            if (ranks or ()).count(rank) > 1:
                raise ValueError(f"rank {rank} is listed twice")
        return ranks

    @model_validator(mode="after")
    def _check_one(self) -> PartitionConfig:
        if {"placement", "ranks"} <= self.model_fields_set:
            raise ValueError("placement and ranks exclude each other")
        if self.per_node and self.placement != "per-node":
            raise ValueError("per_node needs placement = 'per-node'")
        return self


class PoolConfig(_Table):
    """One table `[pool.NAME]`: ranks that serve all of these services, or some in turn."""

    ranks: int = Field(1, ge=1)
    services: Annotated[tuple[StrictStr, ...], BeforeValidator(_tuple)]
    loaded: Annotated[int | None, Field(ge=1)] = None
    interval_s: float = Field(0.5, gt=0, le=3600)
    hysteresis: float = Field(1.5, ge=1, le=1000)
    least_s: float = Field(5.0, ge=0, le=86400)

    @model_validator(mode="after")
    def _check_loaded(self) -> PoolConfig:
        if self.loaded is None:
            for key in ("interval_s", "hysteresis", "least_s"):
                if key in self.model_fields_set:
                    raise ValueError(f"{key} needs loaded: otherwise ranks hold all services")
            return self
        if self.loaded >= len(self.services):
            text = f"loaded = {self.loaded}, but there are {len(self.services)} services"
            raise ValueError(f"{text}: leave it out, and each rank holds all of them")
        if self.ranks * self.loaded < len(self.services):
            places = f"{self.ranks} ranks that hold {self.loaded}"
            raise ValueError(f"{places} are too few for {len(self.services)} services")
        return self


class Group(NamedTuple):
    """Services that share their inference ranks: one alone, or those of a pool.

    Attributes:
        services: In the order in which a rank publishes them.
        replicas: Of each of them.
        tensor_parallel: Ranks of a replica.
        key: Of the configuration, that says how many replicas there are.
        pool: The table of their pool, if they have one.
    """

    services: tuple[ServiceConfig, ...]
    replicas: int
    tensor_parallel: int
    key: str
    pool: PoolConfig | None = None


class Config(_Table):
    """A whole file: the partition, the services and their pools, in the order of the file."""

    partition: PartitionConfig = PartitionConfig()
    service: dict[StrictStr, ServiceConfig]
    pool: dict[StrictStr, PoolConfig] = Field(default_factory=dict)

    _source: str = PrivateAttr("config")

    @property
    def source(self) -> str:
        """The file, as the user named it."""
        return self._source

    @property
    def services(self) -> tuple[ServiceConfig, ...]:
        """The services in the order of the file."""
        return tuple(self.service.values())

    @property
    def groups(self) -> tuple[Group, ...]:
        """The services by the ranks that they share, in the order of their first ones."""
        pool_of = {name: key for key, pool in self.pool.items() for name in pool.services}
        groups = {}
        for name, service in self.service.items():
            pool = self.pool.get(pool_of.get(name, ""))
            key = f"pool.{pool_of[name]}.ranks" if pool else f"service.{name}.replicas"
            members = tuple(self.service[member] for member in (pool.services if pool else (name,)))
            groups[key] = Group(members, service.replicas, service.tensor_parallel, key, pool)
        return tuple(groups.values())

    @field_validator("service")
    @classmethod
    def _check_services(cls, service: dict[str, ServiceConfig]) -> dict[str, ServiceConfig]:
        if not service:
            raise ValueError("missing; describe at least one [service.NAME]")
        for name in service:
            _name(name)
        return service

    @field_validator("pool")
    @classmethod
    def _check_pools(
        cls, pools: dict[str, PoolConfig], info: ValidationInfo
    ) -> dict[str, PoolConfig]:
        services, seen = info.data.get("service", {}), set()
        for key, pool in pools.items():
            if not pool.services:
                raise ValueError(f"'{key}' has no services")
            for name in pool.services:
                if name not in services:
                    raise ValueError(f"'{key}': no service '{name}' {_suggest(name, [*services])}")
                if name in seen:
                    raise ValueError(f"'{key}': the service '{name}' is listed twice")
                seen.add(name)
                _check_pooled(key, name, services[name])
            # Libraries of one process start as many threads for one model as for another.
            if len({services[name].threads for name in pool.services}) > 1:
                raise ValueError(f"'{key}': threads must be the same for all its services")
        return pools

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read and check a file.

        Raises:
            ConfigError: In one line, with the file and the key.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise _error(path, (error.strerror or str(error)).lower()) from None
        except tomllib.TOMLDecodeError as error:
            raise _error(path, _syntax(str(error))) from None
        except UnicodeDecodeError:
            raise _error(path, "not UTF-8 text, as TOML must be") from None
        return cls.from_dict(data, source=str(path), folder=Path(path).resolve().parent)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, source: str = "config", folder: Path | None = None
    ) -> Config:
        """Check the tables of a file that was read, or built, elsewhere.

        Raises:
            ConfigError: In one line, with the source and the key.
        """
        try:
            config = cls.model_validate(data)
        except ValidationError as error:
            raise _error(source, _first_line(error)) from None
        config._source = source
        for pool in config.pool.values():
            for name in pool.services:
                update = {"replicas": pool.ranks}
                config.service[name] = config.service[name].model_copy(update=update)
        for name, service in config.service.items():
            service._name = name
            service._folder = folder or Path.cwd()
        return config

    def error(self, key: str, text: str) -> ConfigError:
        """Make the error for a key of this file."""
        return _error(self._source, f"{key}: {text}")


def _check_pooled(pool: str, name: str, service: ServiceConfig) -> None:
    if service.tensor_parallel > 1:
        raise ValueError(f"'{pool}': the service '{name}' has tensor_parallel, and a pool has 1")
    if "replicas" in service.model_fields_set:
        raise ValueError(f"'{pool}' has the replicas of the service '{name}': its ranks")


def _error(source: str | Path, text: str) -> ConfigError:
    return ConfigError(Code.ECONFIG, f"{source}: {text}")


def _syntax(text: str) -> str:
    where = re.search(r"\s*\(at (.+)\)$", text)
    if not where:
        return text
    return f"{where.group(1)}: {text[: where.start()]}"


def _first_line(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    # A misspelt key is also a missing one: the misspelling is what helps.
    problems = [p for p in problems if p["type"] == "extra_forbidden"] or problems
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{_key(problems[0]['loc'])}: {_reason(problems[0])}{more}"


def _key(location: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).lstrip(".")


def _reason(problem: Any) -> str:
    kind, text, given = problem["type"], problem["msg"], problem["input"]
    if kind == "extra_forbidden":
        location = problem["loc"]
        return f"unknown key {_suggest(str(location[-1]), _keys_at(location[:-1]))}"
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind in ("model_type", "dict_type"):
        return f"must be a table, got {given!r}"
    text = text.replace("Input should be", "must be").replace("valid tuple", "list")
    return f"{text.replace('a valid ', 'a ').replace('a integer', 'an integer')}, got {given!r}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the table at this place of the file may have."""
    if not location:
        return list(Config.model_fields)
    if location[0] == "partition":
        return list(PartitionConfig.model_fields)
    if location[0] == "pool":
        return list(PoolConfig.model_fields)
    return list((ServiceConfig if len(location) == 2 else TensorConfig).model_fields)
