"""The TOML file of the inference ranks, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mpiserve.config.capture import CaptureConfig
from mpiserve.config.completion import Completed, completions, contradiction
from mpiserve.config.derivatives import derived, name_of
from mpiserve.config.gateway import GatewayConfig
from mpiserve.config.model_file import SIDES
from mpiserve.config.reader import read_tables
from mpiserve.config.service import ServiceConfig
from mpiserve.config.tables import Table, TensorConfig, as_tuple, check_name
from mpiserve.config.trainer import TrainerConfig, first_problem
from mpiserve.config.values import (
    MAX_RANKS,
    Location,
    key_of,
    line_error,
    shown,
    suggest,
    value_problem,
)
from mpiserve.errors import ConfigError


class PartitionConfig(Table):
    """The table `[partition]`: the inference ranks of a world that runs one program."""

    placement: Literal["tail", "per-node", "dedicated"] = "tail"
    """Which ranks become inference ranks: the last ranks of the world, the last ranks of each
    node, or all ranks of the last nodes.
    """
    per_node: Annotated[int | None, Field(ge=1, le=MAX_RANKS)] = None
    """With `placement = "per-node"`: the number of inference ranks on each node."""
    bind: bool = False
    """Whether to bind inference ranks to cores of their own."""
    ranks: Annotated[tuple[StrictInt, ...] | None, BeforeValidator(as_tuple)] = None
    """The world ranks that become inference ranks, in place of `placement`."""
    spares: Annotated[int, Field(ge=0, le=MAX_RANKS)] = 0
    """Inference ranks more than the replicas need, the last ones. A spare takes the place of a
    replica that dies, of any service but those with `tensor_parallel` and those of adaptive pools;
    `session.start` and `session.scale` use it too. Each reserves memory for requests, as a replica
    of each of these services does. If one service with `tensor_parallel` is all that spares could
    serve, so many ranks are one spare, which needs `warm_spares`.
    """
    warm_spares: bool = False
    """Whether a spare keeps the models of all these services in memory, and so serves at once. By
    default it loads each once at open, so that errors are found, and again when it is needed.
    """

    @field_validator("ranks")
    @classmethod
    def _check_ranks(cls, ranks: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if ranks == ():
            raise ValueError("at least one rank must infer")
        seen: set[int] = set()
        for rank in ranks or ():
            if rank < 0:
                raise ValueError(f"rank {rank} is negative")
            if rank in seen:
                raise ValueError(f"rank {rank} is listed twice")
            seen.add(rank)
        return ranks

    @model_validator(mode="after")
    def _check_one(self) -> PartitionConfig:
        if {"placement", "ranks"} <= self.model_fields_set:
            raise ValueError("placement and ranks exclude each other")
        if self.per_node and self.placement != "per-node":
            raise ValueError("per_node needs placement = 'per-node'")
        if self.warm_spares and not self.spares:
            raise ValueError("warm_spares needs spares")
        return self


class PoolConfig(Table):
    """One table `[pool.NAME]`: ranks that serve all of these services, or some in turn."""

    ranks: int = Field(1, ge=1, le=MAX_RANKS)
    """Inference ranks of the pool, each a replica of each of its services."""
    services: Annotated[tuple[StrictStr, ...], BeforeValidator(as_tuple)]
    """The names of the services that share the ranks."""
    loaded: Annotated[int | None, Field(ge=1, le=MAX_RANKS)] = None
    """How many models a rank holds at a time, which makes the pool adaptive; without it, all of
    them.
    """
    interval_s: float = Field(0.5, gt=0, le=3600)
    """Seconds between two load reports of a rank."""
    hysteresis: float = Field(1.5, ge=1, le=1000)
    """A rank changes services when the load of the new one is this many times the load that the
    old one will have.
    """
    least_s: float = Field(5.0, ge=0, le=86400)
    """The least time in seconds between two changes; choose several times what loading a model
    takes.
    """

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
            held = f"{self.ranks} ranks that hold {self.loaded}"
            raise ValueError(f"{held} are too few for {len(self.services)} services")
        return self


class Group(NamedTuple):
    """Services that share their inference ranks: one service, or those of a pool.

    Attributes:
        services: The services, in the order in which a rank publishes them.
        replicas: The number of replicas of each service.
        tensor_parallel: The number of ranks of a replica.
        key: The key of the configuration that sets the number of replicas.
        pool: The table of the pool, if there is one.
    """

    services: tuple[ServiceConfig, ...]
    replicas: int
    tensor_parallel: int
    key: str
    pool: PoolConfig | None = None


class Config(Table):
    """A configuration file: the partition, the services and their pools, in file order."""

    partition: PartitionConfig = PartitionConfig()
    """Which ranks of one program infer."""
    service: dict[StrictStr, ServiceConfig]
    """The services, one table each."""
    pool: dict[StrictStr, PoolConfig] = Field(default_factory=dict)
    """Services that share inference ranks, one table for each pool."""
    capture: CaptureConfig | None = None
    """Requests and answers that are written to files; without the table none are."""
    trainer: dict[StrictStr, TrainerConfig] = Field(default_factory=dict)
    """Ranks that train models while the job runs, one table each."""
    gateway: GatewayConfig | None = None
    """The rank that answers clients outside of the job; without the table there is none."""

    _source: str = PrivateAttr("config")
    _folder: Path = PrivateAttr(Path())

    @property
    def source(self) -> str:
        """The file, as the user named it."""
        return self._source

    @property
    def folder(self) -> Path:
        """The folder from which paths of the file begin."""
        return self._folder

    @property
    def services(self) -> tuple[ServiceConfig, ...]:
        """The services in the order of the file."""
        return tuple(self.service.values())

    @property
    def groups(self) -> tuple[Group, ...]:
        """The services grouped by the ranks that they share, in the order of their first ones."""
        pool_of = {name: key for key, pool in self.pool.items() for name in pool.services}
        groups = {}
        for name, service in self.service.items():
            if service.derivative:
                continue
            pool = self.pool.get(pool_of.get(name, ""))
            key = f"pool.{pool_of[name]}.ranks" if pool else f"service.{name}.replicas"
            members = self._with_derivatives(pool.services if pool else (name,))
            groups[key] = Group(members, service.replicas, service.tensor_parallel, key, pool)
        return tuple(groups.values())

    def _with_derivatives(self, names: Sequence[str]) -> tuple[ServiceConfig, ...]:
        """Return services, each followed by its derivatives."""
        members = []
        for service in map(self.service.__getitem__, names):
            derivatives = [name_of(service.name, kind) for kind in service.derivatives]
            members += [service, *map(self.service.__getitem__, derivatives)]
        return tuple(members)

    @property
    def spared(self) -> tuple[Group, ...]:
        """The groups of which a spare can serve one; it has as many ranks as a replica of them."""
        groups = [group for group in self.groups if not (group.pool and group.pool.loaded)]
        of_one_rank = tuple(group for group in groups if group.tensor_parallel == 1)
        return of_one_rank or (tuple(groups) if len(groups) == 1 else ())

    @field_validator("service")
    @classmethod
    def _check_services(cls, service: dict[str, ServiceConfig]) -> dict[str, ServiceConfig]:
        if not service:
            raise ValueError("missing; describe at least one [service.NAME]")
        for name in service:
            check_name(name)
        return service

    @field_validator("trainer")
    @classmethod
    def _check_trainers(cls, trainers: dict[str, TrainerConfig]) -> dict[str, TrainerConfig]:
        for name in trainers:
            check_name(name)
        return trainers

    @field_validator("pool")
    @classmethod
    def _check_pools(
        cls, pools: dict[str, PoolConfig], info: ValidationInfo
    ) -> dict[str, PoolConfig]:
        services, seen = info.data.get("service", {}), set()
        for key, pool in pools.items():
            check_name(key)
            if not pool.services:
                raise ValueError(f"'{key}' has no services")
            for name in pool.services:
                if name not in services:
                    raise ValueError(f"'{key}': no service '{name}' {suggest(name, [*services])}")
                if name in seen:
                    raise ValueError(f"'{key}': the service '{name}' is listed twice")
                seen.add(name)
                _check_pooled(key, name, services[name], pool.loaded)
            # A process has one number of threads for all its models.
            if len({services[name].threads for name in pool.services}) > 1:
                raise ValueError(f"'{key}': threads must be the same for all its services")
        return pools

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read and check a file.

        Raises:
            ConfigError: With one line that names the file and the key.
        """
        data = read_tables(path)
        return cls.from_dict(data, source=str(path), folder=Path(path).resolve().parent)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, source: str = "config", folder: Path | None = None
    ) -> Config:
        """Check tables that were read or built elsewhere.

        Services without inputs or outputs get those that the files of their models say.

        Raises:
            ConfigError: With one line that names the source and the key.
        """
        if unfit := value_problem(data):
            raise line_error(source, f"{key_of(unfit[0])}: {unfit[1]}")
        folder = folder or Path.cwd()
        completed = completions(data.get("service"), folder)
        try:
            config = cls.model_validate(_with(data, completed))
        except ValidationError as error:
            raise line_error(source, _first_line(error, completed)) from None
        config._source = source
        for pool in config.pool.values():
            for name in pool.services:
                update = {"replicas": pool.ranks}
                config.service[name] = config.service[name].model_copy(update=update)
        for name, service in config.service.items():
            service._name = name
            service._folder = folder
            config._complete(service, completed.get(name))
        config._derive()
        config._folder = folder
        config._check_captured()
        if found := first_problem(config):
            raise config.error(*found)
        if config.partition.spares:
            config._check_spares()
        return config

    def _check_spares(self) -> None:
        if not self.spared:
            text = "no service is left for spares: they serve none of an adaptive pool, and of"
            text += " services with tensor_parallel one alone"
            raise self.error("partition.spares", text)
        (service, *_), ranks = self.spared[0].services, self.spared[0].tensor_parallel
        of = f"service '{service.name}', of {ranks} ranks (tensor_parallel)"
        if self.partition.spares % ranks:
            text = f"{self.partition.spares} ranks make no whole spares of {of}"
            raise self.error("partition.spares", text)
        if ranks > 1 and not self.partition.warm_spares:
            text = f"a spare of {of}, must hold its model: set this to true"
            raise self.error("partition.warm_spares", text)

    def _check_captured(self) -> None:
        for name in self.capture.services if self.capture else ():
            if name not in self.service:
                text = f"no service '{name}' {suggest(name, [*self.service])}"
                raise self.error("capture.services", text)
        if self.capture and self.capture.rows == "untrusted":
            names = self.capture.services or [*self.service]
            if all(self.service[name].uncertainty is None for name in names):
                text = "'untrusted' rows need a captured service with a table [service.NAME."
                raise self.error("capture.rows", f"{text}uncertainty], but none has one")

    def _complete(self, service: ServiceConfig, completed: Completed | None) -> None:
        """Note what was read from a file, and refuse what contradicts it."""
        if completed is None or completed.signature is None:
            return
        service._completed_by = (completed.signature.file, tuple(completed.added))
        if found := contradiction(service, completed.signature):
            raise self.error(f"service.{service.name}.{found[0]}", found[1])

    def _derive(self) -> None:
        """Add the services that answer with derivatives of others."""
        for service in self.services:
            key = f"service.{service.name}.derivatives"
            for kind in service.derivatives:
                name = name_of(service.name, kind)
                if name in self.service:
                    raise self.error(key, f"there is a service '{name}' already: rename it")
                try:
                    self.service[name] = derived(service, kind)
                except ValueError as error:
                    raise self.error(key, str(error)) from None

    def error(self, key: str, text: str) -> ConfigError:
        """Make the error for a key of this file."""
        return line_error(self._source, f"{key}: {text}")


def _check_pooled(pool: str, name: str, service: ServiceConfig, loaded: int | None) -> None:
    if loaded and service.derivatives:
        text = f"'{pool}': the service '{name}' has derivatives"
        raise ValueError(f"{text}, which its ranks hold beside it: remove loaded")
    if service.reproducible:
        text = f"'{pool}': the service '{name}' is reproducible"
        raise ValueError(f"{text}, but which rank of a pool answers depends on time: remove one")
    if service.tensor_parallel > 1:
        text = f"'{pool}': the service '{name}' sets tensor_parallel"
        raise ValueError(f"{text}, which a pool does not support: remove it")
    if "replicas" in service.model_fields_set:
        text = f"'{pool}': the service '{name}' sets replicas"
        raise ValueError(f"{text}: remove it, since the pool has a replica on each of its ranks")


def _with(data: Mapping[str, Any], completed: Mapping[str, Completed]) -> Mapping[str, Any]:
    """Add what was read from files to the tables of services."""
    if not completed:
        return data
    tables = {name: data["service"][name] | found.added for name, found in completed.items()}
    return {**data, "service": {**data["service"], **tables}}


def _first_line(error: ValidationError, completed: Mapping[str, Completed]) -> str:
    problems = error.errors(include_url=False)
    # A misspelt key is also reported as missing: the misspelling helps more.
    problems = [p for p in problems if p["type"] == "extra_forbidden"] or problems
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    first = problems[0]
    reason = _unread(first["loc"], completed) or _reason(first)
    return f"{key_of(first['loc']) or 'the whole'}: {reason}{more}"


def _unread(location: Location, completed: Mapping[str, Completed]) -> str:
    """Say why inputs or outputs are missing that could not be read from a file."""
    if len(location) != 3 or location[2] not in SIDES:
        return ""
    found = completed.get(str(location[1]))
    return f"missing; {found.problem}" if found and found.problem else ""


def _reason(problem: Any) -> str:
    kind, text, given = problem["type"], problem["msg"], problem["input"]
    if kind == "extra_forbidden":
        location = problem["loc"]
        return f"unknown key {suggest(str(location[-1]), _keys_at(location[:-1]))}"
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind in ("model_type", "dict_type"):
        return f"must be a table, got {shown(given)}"
    text = text.replace("Input should be", "must be").replace("valid tuple", "list")
    return (
        f"{text.replace('a valid ', 'a ').replace('a integer', 'an integer')}, got {shown(given)}"
    )


def _keys_at(location: Location) -> list[str]:
    """The keys that the table at this location of the file may have."""
    if not location:
        return list(Config.model_fields)
    if location[0] == "partition":
        return list(PartitionConfig.model_fields)
    if location[0] == "capture":
        return list(CaptureConfig.model_fields)
    if location[0] == "gateway":
        return list(GatewayConfig.model_fields)
    if location[0] == "pool":
        return list(PoolConfig.model_fields)
    if location[0] == "trainer":
        return list(TrainerConfig.model_fields)
    return list((ServiceConfig if len(location) == 2 else TensorConfig).model_fields)
