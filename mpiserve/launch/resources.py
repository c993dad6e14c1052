"""Compare the resources that services state with those of a node."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

from mpiserve.config.partition import SIMULATION, Assignment

# What a service states by its key; the option of `plan` that says what a node has.
WORDS = {"cores": "cores", "gpus": "GPUs", "memory_bytes": "bytes of memory"}
OPTIONS = {"cores": "--cores-per-node", "gpus": "--gpus-per-node"}
OPTIONS["memory_bytes"] = "--memory-per-node"


@dataclass(frozen=True)
class Node:
    """What a node has; None: not known, and not compared."""

    cores: int | None = None
    gpus: int | None = None
    memory_bytes: int | None = None


def this_machine() -> Node:
    """Return the resources of this machine."""
    gpus = len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Node(len(os.sched_getaffinity(0)), gpus, memory)


def lack(
    node: Node, nodes: Sequence[int], roles: Sequence[str], serving: Mapping[int, Assignment]
) -> str | None:
    """Say what a node lacks for the replicas on it; None if it lacks nothing.

    Args:
        node: What each node has.
        nodes: The number of the node, by rank.
        roles: The role, by rank.
        serving: The assignment of each inference rank.
    """
    here: dict[int, list[Assignment]] = {}
    for rank, assigned in serving.items():
        here.setdefault(nodes[rank], []).append(assigned)
    clients = Counter(n for n, role in zip(nodes, roles, strict=True) if role == SIMULATION)
    for resource, at in product(WORDS, here):
        has = getattr(node, resource)
        others = clients[at] if resource == "cores" else 0
        if has is not None and (text := _lack(resource, has, here[at], others)):
            return f"{text}; node {at} has {has} ({OPTIONS[resource]}; default: as here)"
    return None


def _lack(resource: str, has: int, here: Sequence[Assignment], clients: int) -> str | None:
    needs = [(_need(assigned, resource), assigned) for assigned in here]
    total = sum((need for need, _ in needs), Fraction(clients))
    stated = [(need, assigned) for need, assigned in needs if need]
    if not stated or total <= has:
        return None
    most, assigned = max(stated, key=lambda pair: pair[0])
    service = max(assigned.services, key=lambda each: _stated(each, resource))
    text = f"service.{service.name}.{resource}: {_stated(service, resource)} {WORDS[resource]}"
    text += f" a replica make {float(total):g} on one node"
    return f"{text}, with 1 for each of {clients} simulation ranks" if clients else text


def _need(assigned: Assignment, resource: str) -> Fraction:
    """Return what a rank needs: its share of a replica, or for the services of a pool."""
    needs = [
        Fraction(_stated(service, resource), service.tensor_parallel)
        for service in assigned.services
    ]
    if resource != "memory_bytes":
        return max(needs)  # one computes at a time
    held = assigned.pool.loaded if assigned.pool and assigned.pool.loaded else len(needs)
    return sum(sorted(needs, reverse=True)[:held], Fraction(0))


def _stated(service: object, resource: str) -> int:
    return getattr(service, resource, 0)
