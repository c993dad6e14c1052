"""Who infers, and what: pure functions of the configuration and the world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mpiserve.config import Config, ServiceConfig
from mpiserve.errors import ConfigError

SIMULATION = "simulation"
INFERENCE = "inference"


class Seat(NamedTuple):
    """What one inference rank does: a rank of one replica of one service."""

    service: ServiceConfig
    replica: int
    tp_index: int


def seats(config: Config) -> list[Seat]:
    """List what the inference ranks do, in their order.

    First replicas of all services come first, then the second ones, so that a
    placement over several nodes gives each node a mix of the services.
    """
    last = max(service.replicas for service in config.services)
    return [
        Seat(service, replica, index)
        for replica in range(last)
        for service in config.services
        if replica < service.replicas
        for index in range(service.tensor_parallel)
    ]


def assign(config: Config, n_inference: int) -> list[Seat]:
    """Give each of n inference ranks its seat.

    Raises:
        ConfigError: If there are more or fewer ranks than seats.
    """
    needed = len(seats(config))
    if n_inference < needed:
        raise _too_few(config, n_inference, f"{_ranks(n_inference)} serve")
    if n_inference > needed:
        text = f"the services take {_ranks(needed)}, but {_ranks(n_inference)} serve"
        raise config.error("service", f"{text}: raise replicas, or start fewer")
    return seats(config)


def roles(config: Config, world_size: int, nodes: Sequence[int] | None = None) -> list[str]:
    """Choose the role of every rank of a world that runs one program.

    Args:
        config: The configuration.
        world_size: Ranks of the world.
        nodes: The node of each rank, any numbers; needed for "per-node" alone.

    Raises:
        ConfigError: If the services do not fit into the world.
    """
    needed = len(seats(config))
    if needed >= world_size:
        spare = f"leaves {world_size - 1} beside a simulation rank"
        raise _too_few(config, world_size - 1, f"the world of {_ranks(world_size)} {spare}")
    if config.partition.ranks is not None:
        chosen = _listed(config, world_size, needed)
    elif config.partition.placement == "per-node":
        chosen = _spread(needed, nodes or [0] * world_size)
    else:
        chosen = set(range(world_size - needed, world_size))
    return [INFERENCE if rank in chosen else SIMULATION for rank in range(world_size)]


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


def _spread(needed: int, nodes: Sequence[int]) -> set[int]:
    """Take ranks from the tails of the nodes in turn; a node's last rank only if it must be."""
    free: dict[int, list[int]] = {}
    for rank, node in enumerate(nodes):
        free.setdefault(node, []).append(rank)
    taken = dict.fromkeys(free, 0)
    chosen = set()
    for _ in range(needed):
        open_nodes = [node for node in free if len(free[node]) > 1] or [n for n in free if free[n]]
        node = min(open_nodes, key=lambda node: taken[node])
        taken[node] += 1
        chosen.add(free[node].pop())
    return chosen


def _too_few(config: Config, available: int, have: str) -> ConfigError:
    """Blame the first service that does not fit any more."""
    total = 0
    for service in config.services:
        mine = service.replicas * service.tensor_parallel
        total += mine
        if total > available:
            break
    verb = "needs" if service.replicas == 1 else "need"
    need = f"{_count(service.replicas, 'replica')} {verb} {_count(mine, 'inference rank')}"
    others = "" if total == mine else f" ({total} with the services above)"
    return config.error(f"service.{service.name}.replicas", f"{need}{others}, {have}")


def _ranks(count: int) -> str:
    return _count(count, "rank")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
