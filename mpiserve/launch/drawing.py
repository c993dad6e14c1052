"""Draw the partition of a world as text: a line for each node, a character for each rank."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, cycle, groupby, repeat
from string import ascii_uppercase
from textwrap import wrap
from typing import TYPE_CHECKING

from mpiserve import terminal
from mpiserve.config import Config, Group
from mpiserve.config.partition import GATEWAY, SIMULATION, TRAINER, count, guests
from mpiserve.launch.plan import Plan, plan, ranges

if TYPE_CHECKING:
    from rich.text import Text

SIMULATES, SPARE, OTHER = ".", "+", "#"
GUESTS = {GATEWAY: "*", TRAINER: "~"}
LETTERS = ascii_uppercase  # of services; more of them share OTHER
COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "red")
WIDTH, NAME, MOST = 80, 24, 12  # characters of a line and of a name; ranks that are listed


def show(config: Config, ranks: int | None, per_node: int | None) -> None:
    """Print the services of a configuration, and the partition of a world.

    Args:
        config: The configuration.
        ranks: The ranks of the world; by default as few as there can be.
        per_node: The ranks of each node; by default all are on one, or as few as there can be.

    Raises:
        ConfigError: If the services do not fit into the world.
    """
    fewest, each = _fewest(config)
    given = ranks is not None or per_node is not None
    made = plan(config, fewest if ranks is None else ranks, per_node if given else each)
    console = terminal.console()
    console.print(_services(config))
    lines = drawn(config, made)
    for i, line in enumerate(lines):
        console.print(_coloured(line, i < lines.index("")), soft_wrap=True)
    if ranks is None:
        print("The smallest world is drawn; with -n RANKS --ranks-per-node RANKS another one.")


def _coloured(line: str, is_node: bool) -> Text:
    """Give letters their colours: those of ranks, or that which a line explains."""
    from rich.text import Text

    text = Text(line)
    for letter, colour in zip(LETTERS, cycle(COLOURS), strict=False):
        text.highlight_regex(letter if is_node else rf"^  {letter}(?=  )", colour)
    return text


def _services(config: Config) -> object:
    from rich.table import Table

    table = Table("service", "replicas", "backend", "model")
    for service in config.services:
        replicas, model = str(service.replicas), service.model or "-"
        table.add_row(service.name, replicas, service.backend, model)
    if config.partition.spares:
        names = ", ".join(service.name for group in config.spared for service in group.services)
        table.add_row("spares", str(config.partition.spares), "", f"of {names}")
    return table


def _fewest(config: Config) -> tuple[int, int | None]:
    """Return the ranks of the smallest world, and those of each of its nodes."""
    needed, partition, gate = count(config), config.partition, len(guests(config))
    if partition.ranks is not None:
        return max([needed, *partition.ranks]) + 1 + gate, None
    if partition.placement == "per-node" and partition.per_node:
        nodes, each = -(-needed // partition.per_node), partition.per_node + 1
        return nodes * each + gate, each
    if partition.placement == "dedicated":
        return 2 * needed + gate, needed
    return needed + 1 + gate, None


def drawn(config: Config, made: Plan) -> list[str]:
    """Return the lines of the drawing, of 80 characters at most, and what its characters mean."""
    letters = _letters(config)
    nodes: dict[int, str] = {}
    for rank, node in enumerate(made.nodes):
        nodes[node] = nodes.get(node, "") + _cell(made, rank, letters)
    alike = [(list(run), row) for row, run in groupby(nodes, nodes.__getitem__)]
    named = [(f"node{'s' * (len(run) > 1)} {ranges(run)}", row) for run, row in alike]
    width = max(len(name) for name, _ in named) + 2
    rows = [line for name, row in named for line in _row(name, row, width)]
    return [*rows, "", *_legend(config, made, letters)]


def _letters(config: Config) -> dict[str, str]:
    """Return the letter of each service: those that share their ranks have the same."""
    letters = chain(LETTERS, repeat(OTHER))
    given = zip(config.groups, letters, strict=False)
    return {service.name: letter for group, letter in given for service in group.services}


def _cell(made: Plan, rank: int, letters: dict[str, str]) -> str:
    if rank not in made.serving:
        return GUESTS.get(made.roles[rank], SIMULATES)
    assignment = made.serving[rank]
    return SPARE if assignment.spare else letters[assignment.service.name]


def _row(name: str, row: str, width: int) -> list[str]:
    """Draw a node; of many ranks their numbers."""
    if len(row) > WIDTH - width:
        runs = [(letter, len(list(run))) for letter, run in groupby(row)]
        row = "  ".join(f"{letter} x {n}" if n > 1 else letter for letter, n in runs)
    return wrap(row, WIDTH, initial_indent=name.ljust(width), subsequent_indent=" " * width)


def _legend(config: Config, made: Plan, letters: dict[str, str]) -> Iterator[str]:
    yield from _meaning(SIMULATES, "simulation", "", made.ranks(SIMULATION))
    for group in config.groups:
        mine = [r for r, a in made.serving.items() if a.service in group.services and not a.spare]
        yield from _meaning(letters[group.services[0].name], _names(group), _replicas(group), mine)
    if spares := [rank for rank, assignment in made.serving.items() if assignment.spare]:
        names = " or ".join(map(_names, config.spared))
        yield from _meaning(SPARE, "spare", f"of {names}", spares)
    for name, rank in zip(config.trainer, made.ranks(TRAINER), strict=True):
        what = f"of {config.trainer[name].service or name}"
        yield from _meaning(GUESTS[TRAINER], f"trainer {name}", what, [rank])
    if gates := made.ranks(GATEWAY):
        yield from _meaning(GUESTS[GATEWAY], "gateway", "", gates)


def _names(group: Group) -> str:
    return " + ".join(service.name for service in group.services if not service.derivative)


def _replicas(group: Group) -> str:
    text = f"{group.replicas} replica{'s' * (group.replicas > 1)}"
    return text + (f" of {group.tensor_parallel} ranks" if group.tensor_parallel > 1 else "")


def _meaning(letter: str, name: str, what: str, ranks: list[int]) -> list[str]:
    listed = ranges(ranks, ", ").split(", ")
    some = ", ".join(listed[:MOST]) + (", ..." if len(listed) > MOST else "")
    on = f"rank {some}" if len(ranks) == 1 else f"ranks {some} ({len(ranks)})"
    text = f"{name.ljust(NAME)}  {what}{', ' if what else ''}{on}"
    return wrap(text, WIDTH, initial_indent=f"  {letter}  ", subsequent_indent=" " * 7)
