"""Choose the inference ranks and their services from the configuration and the world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mpiserve.config import Config, Group, PartitionConfig, PoolConfig, ServiceConfig
from mpiserve.errors import ConfigError

SIMULATION = "simulation"
INFERENCE = "inference"
TRAINER = "trainer"  # the ranks behind all others but the gateway
GATEWAY = "gateway"  # the last rank of a world with one


class Assignment(NamedTuple):
    """The work of one inference rank: its replica of one service, or of each service of a pool.

    Attributes:
        services: The services, in the order in which the rank publishes them.
        replica: Counts the replicas, or the spares.
        tp_index: The position among the ranks of the replica.
        pool: The table of the pool, if there is one.
        spared: The groups of services of which a spare serves one at a time; of others empty.
        warm: Whether a spare keeps all models in memory.
        backed: Whether another replica, or a spare, can take its place.
    """

    services: tuple[ServiceConfig, ...]
    replica: int
    tp_index: int
    pool: PoolConfig | None = None
    spared: tuple[Group, ...] = ()
    warm: bool = False
    backed: bool = False

    @property
    def spare(self) -> bool:
        """Whether the rank is a spare."""
        return bool(self.spared)

    @property
    def service(self) -> ServiceConfig:
        """The service, or the first one of a pool."""
        return self.services[0]

    @property
    def name(self) -> str:
        """The names of the services, for texts."""
        return " + ".join(service.name for service in self.services)


def assignments(config: Config) -> list[Assignment]:
    """List the assignments of the inference ranks, in rank order.

    The first replicas of all services and pools come first, then the second ones, so that a
    placement over several nodes gives each node a mix of the services. Spares come last.
    """
    last = max(group.replicas for group in config.groups)
    groups = config.spared if config.partition.spares else ()
    replicas = [
        Assignment(
            group.services,
            replica,
            index,
            group.pool,
            backed=group.replicas > 1 or group in groups,
        )
        for replica in range(last)
        for group in config.groups
        if replica < group.replicas
        for index in range(group.tensor_parallel)
    ]
    services = tuple(service for group in groups for service in group.services)
    ranks, warm = groups[0].tensor_parallel if groups else 1, config.partition.warm_spares
    return replicas + [
        Assignment(services, *divmod(i, ranks), spared=groups, warm=warm, backed=True)
        for i in range(config.partition.spares)
    ]


def count(config: Config) -> int:
    """Count the inference ranks, without listing them."""
    replicas = sum(group.replicas * group.tensor_parallel for group in config.groups)
    return replicas + config.partition.spares


def assign(config: Config, n_inference: int) -> list[Assignment]:
    """Give each of n inference ranks its assignment.

    Raises:
        ConfigError: If there are more or fewer ranks than assignments.
    """
    needed = count(config)
    if n_inference < needed:
        raise _too_few(config, n_inference, f"{_ranks(n_inference)} serve")
    if n_inference > needed:
        text = f"the services take {_ranks(needed)}, but {_ranks(n_inference)} serve"
        raise config.error("service", f"{text}: raise replicas, or start fewer")
    return assignments(config)


def guests(config: Config) -> list[str]:
    """List the roles of the last ranks of a world, which neither simulate nor infer."""
    return [TRAINER] * len(config.trainer) + [GATEWAY] * bool(config.gateway)


def roles(config: Config, world_size: int, nodes: Sequence[int] | None = None) -> list[str]:
    """Choose the role of every rank of a world that runs one program.

    Args:
        config: The configuration.
        world_size: Ranks of the world.
        nodes: The node of each rank, as any numbers; needed if `by_node` returns True.

    Raises:
        ConfigError: If the services do not fit into the world.
    """
    needed, last = count(config), guests(config)
    world_size -= len(last)
    nodes = nodes[:world_size] if nodes else nodes
    if needed >= world_size:
        beside = [f"a {role}" for role in last] + ["a simulation rank"]
        have = f"the world of {_ranks(world_size + len(last))} leaves {max(world_size - 1, 0)}"
        raise _too_few(config, world_size - 1, f"{have} beside {' and '.join(beside)}")
    if config.partition.ranks is not None:
        chosen = _listed(config, world_size, needed)
    elif config.partition.placement == "per-node":
        chosen = _spread(config, needed, _members(nodes or [0] * world_size))
    elif config.partition.placement == "dedicated":
        chosen = _last_nodes(config, needed, _members(nodes or [0] * world_size))
    else:
        chosen = set(range(world_size - needed, world_size))
    return [INFERENCE if rank in chosen else SIMULATION for rank in range(world_size)] + last


def _listed(config: Config, world_size: int, needed: int) -> set[int]:
    ranks = config.partition.ranks or ()
    for rank in ranks:
        if rank >= world_size:
            text = f"rank {rank} is not in the world of {_ranks(world_size)}"
            raise config.error("partition.ranks", text)
    if len(ranks) != needed:
        text = f"{_ranks(len(ranks))} listed, but the services take {needed}"
        raise config.error("partition.ranks", text)
    return set(ranks)


def on_one_rank(config: Config) -> Config:
    """Return a configuration whose services are all served by one inference rank.

    Raises:
        ConfigError: If a service needs several ranks.
    """
    for service in config.services:
        if service.tensor_parallel > 1:
            text = f"{_ranks(service.tensor_parallel)} hold its model, and a session of one process"
            key = f"service.{service.name}.tensor_parallel"
            raise config.error(key, f"{text} has one inference rank: use mpiexec")
    services = {s.name: s.model_copy(update={"replicas": 1}) for s in config.services}
    names = tuple(s.name for s in config.services if not s.derivative)
    pool = {"local": PoolConfig.model_validate({"services": names})} if len(names) > 1 else {}
    update = {"service": services, "pool": pool, "partition": PartitionConfig()}
    update |= {"gateway": None, "trainer": {}}
    return config.model_copy(update=update)


def by_node(config: Config) -> bool:
    """Return whether roles depend on the nodes of the ranks."""
    return config.partition.ranks is None and config.partition.placement != "tail"


def replica_of(
    rank: int, replicas: Sequence[int], nodes: Sequence[int], roles: Sequence[str]
) -> int:
    """Choose the replica that a simulation rank queries, as csrc/client/client.c does.

    Args:
        rank: The world rank of the simulation rank.
        replicas: The world ranks of the heads of one service.
        nodes: The node of each rank of the world.
        roles: The role of each rank of the world.

    Returns:
        The world rank of the head: round robin over those of the same node, or over all if the
        node has none.
    """
    near = [replica for replica in replicas if nodes[replica] == nodes[rank]] or list(replicas)
    return near[list(roles[:rank]).count(SIMULATION) % len(near)]


def cores_of(cores: Sequence[int], threads: Sequence[int]) -> list[list[int]] | None:
    """Divide the cores of a node: the last ones for its inference ranks, the first for the others.

    Args:
        cores: The cores of the node.
        threads: The threads of each inference rank of the node, in rank order.

    Returns:
        The cores of each inference rank, then those of the simulation ranks; None if no core
        is left for the simulation ranks.
    """
    at = len(cores) - sum(threads)
    if at < 1:
        return None
    shares = [list(cores[at + sum(threads[:i]) :][:count]) for i, count in enumerate(threads)]
    return [*shares, list(cores[:at])]


def _members(nodes: Sequence[int]) -> dict[int, list[int]]:
    """List the ranks of each node; the nodes are in the order of their first ranks."""
    members: dict[int, list[int]] = {}
    for rank, node in enumerate(nodes):
        members.setdefault(node, []).append(rank)
    return members


def _last_nodes(config: Config, needed: int, members: dict[int, list[int]]) -> set[int]:
    """Choose whole nodes from the end."""
    chosen: set[int] = set()
    for node in reversed(members):
        if len(chosen) < needed:
            chosen.update(members[node])
    if len(chosen) == needed and len(chosen) < sum(map(len, members.values())):
        return chosen
    sizes = ", ".join(str(len(ranks)) for ranks in members.values())
    text = f"the services take {_ranks(needed)}, which fill no whole nodes at the end of {sizes}"
    raise config.error("partition.placement", f"{text} ranks a node, with some to simulate")


def _spread(config: Config, needed: int, free: dict[int, list[int]]) -> set[int]:
    """Choose ranks from the tails of the nodes in turn; the only rank left of a node comes last."""
    each = config.partition.per_node
    if each and each * len(free) != needed:
        text = f"{each} on each of {_count(len(free), 'node')} make {_ranks(each * len(free))}"
        raise config.error("partition.per_node", f"{text}, but the services take {needed}")
    taken = dict.fromkeys(free, 0)
    chosen = set()
    for _ in range(needed):
        open_nodes = [node for node in free if len(free[node]) > 1] or [n for n in free if free[n]]
        node = min(open_nodes, key=lambda node: taken[node])
        taken[node] += 1
        chosen.add(free[node].pop())
    return chosen


def _too_few(config: Config, available: int, have: str) -> ConfigError:
    """Name the first service or pool that does not fit any more."""
    total = 0
    for group in config.groups:
        mine = group.replicas * group.tensor_parallel
        total += mine
        if total > available:
            break
    else:
        need = f"{_count(config.partition.spares, 'spare')} beside {_ranks(total)} of the services"
        return config.error("partition.spares", f"{need}, {have}")
    verb = "needs" if group.replicas == 1 else "need"
    need = f"{_count(group.replicas, 'replica')} {verb} {_count(mine, 'inference rank')}"
    others = "" if total == mine else f" ({total} with the services above)"
    return config.error(group.key, f"{need}{others}, {have}")


def _ranks(count: int) -> str:
    return _count(count, "rank")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
