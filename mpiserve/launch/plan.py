"""Plan the partition of a world without starting it: the role and node of each rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from mpiserve import terminal
from mpiserve.config import Config
from mpiserve.config.partition import (
    GATEWAY,
    INFERENCE,
    SIMULATION,
    TRAINER,
    Assignment,
    assignments,
    replica_of,
    roles,
)
from mpiserve.config.values import line_error
from mpiserve.errors import ArgumentError, Code
from mpiserve.launch.resources import Node, lack

MOST = 2**23  # ranks of a world; no machine has as many cores


@dataclass(frozen=True)
class Plan:
    """A partition: the role and node of each rank, and the services of the inference ranks.

    Attributes:
        roles: "simulation", "inference", "trainer" or "gateway", by rank.
        nodes: The number of the node, by rank; ranks fill the nodes in order.
        per_node: The largest number of ranks of a node.
        serving: The assignment of each inference rank.
        heads: The inference rank that each simulation rank queries, by service.
    """

    roles: tuple[str, ...]
    nodes: tuple[int, ...]
    per_node: int
    serving: dict[int, Assignment]
    heads: dict[str, dict[int, int]]

    def ranks(self, role: str) -> list[int]:
        """List the ranks of a role."""
        return [rank for rank, mine in enumerate(self.roles) if mine == role]

    def clients(self, head: int) -> list[int]:
        """List the simulation ranks that query an inference rank."""
        services = [self.heads[service.name] for service in self.serving[head].services]
        return sorted({rank for heads in services for rank, its in heads.items() if its == head})

    def segments(self) -> list[tuple[str, int]]:
        """Group the ranks into runs of one role: the parts of an MPMD command line."""
        return [(role, len(list(run))) for role, run in groupby(self.roles)]

    def dedicated(self) -> bool:
        """Return whether no node has ranks of both roles."""
        both = {(node, role) for node, role in zip(self.nodes, self.roles, strict=True)}
        return len(both) == len(set(self.nodes))


def plan(config: Config, ranks: int, per_node: int | None = None, node: Node | None = None) -> Plan:
    """Plan a world.

    Args:
        config: The configuration.
        ranks: The ranks of the world.
        per_node: The ranks of each node; by default all ranks are on one node.
        node: What each node has; by default that is not checked.

    Raises:
        ConfigError: If the services do not fit into the world, or need more than a node has.
        ArgumentError: If `ranks` or `per_node` is less than 1.
    """
    per_node = ranks if per_node is None else per_node
    if ranks < 1 or per_node < 1:
        text = f"{ranks} ranks, {per_node} on each node: both must be at least 1"
        raise ArgumentError(Code.EARG, text)
    if ranks > MOST:
        raise ArgumentError(Code.EARG, f"{ranks} ranks: at most {MOST}")
    nodes = [rank // per_node for rank in range(ranks)]
    chosen = roles(config, ranks, nodes)
    inference = [rank for rank in range(ranks) if chosen[rank] == INFERENCE]
    serving = dict(zip(inference, assignments(config), strict=True))
    lacking = lack(node, nodes, chosen, serving) if node else None
    if lacking:
        raise line_error(config.source, lacking)
    queried = {}
    for service in config.services:
        heads = [
            rank
            for rank, assignment in serving.items()
            if service in assignment.services and assignment.tp_index == 0 and not assignment.spare
        ]
        queried[service.name] = {
            rank: replica_of(rank, heads, nodes, chosen)
            for rank in range(ranks)
            if chosen[rank] == SIMULATION
        }
    return Plan(tuple(chosen), tuple(nodes), min(per_node, ranks), serving, queried)


def ranges(numbers: Iterable[int], between: str = ",") -> str:
    """Write ascending numbers as ranges, such as 0-6,8-14."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return between.join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def show(made: Plan) -> None:
    """Print a plan as a table: a row for each inference rank, and one for all simulation ranks."""
    from rich.table import Table

    table = Table("rank", "node", "does", "for ranks", "over")
    simulation = made.ranks(SIMULATION)
    nodes = sorted({made.nodes[rank] for rank in simulation})
    table.add_row(ranges(simulation), ranges(nodes), "simulation", "", "")
    for rank, assignment in made.serving.items():
        asked_by = made.clients(rank)
        near = sum(made.nodes[client] == made.nodes[rank] for client in asked_by)
        counts = [(near, "shared"), (len(asked_by) - near, "rma")]
        over = ", ".join(f"{word} {count}" for count, word in counts if count)
        kind = "spare" if assignment.spare else "replica"
        what = f"{assignment.name}, {kind} {assignment.replica}"
        table.add_row(str(rank), str(made.nodes[rank]), what, ranges(asked_by) or "none", over)
    for role in (TRAINER, GATEWAY):
        for rank in made.ranks(role):
            table.add_row(str(rank), str(made.nodes[rank]), role, "", "")
    terminal.console().print(table)
