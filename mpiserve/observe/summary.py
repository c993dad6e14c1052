"""Make a report of what the ranks have measured, and a text of it for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mpiserve.observe.hints import hints
from mpiserve.observe.parts import CLOSED, STAGES, Part, codes, figures, merge

SIMULATION = 0
SHOWN = 16  # ranks of a table
FORMAT = 1  # of the report

Report = dict[str, Any]


# ---- the report


def report(parts: Sequence[Part]) -> Report:
    """Make the report: of what could be read, which may be some ranks only."""
    if not parts:
        return {}
    size = int(parts[0].head["size"])
    there = {part.rank for part in parts}
    made: Report = {
        "format": FORMAT,
        "ranks": size,
        "missing": [rank for rank in range(size) if rank not in there],
        "open": [part.rank for part in parts if not part.head["closed"]],
        "simulation": [_rank(part) for part in parts if part.head["role"] == SIMULATION],
        "services": _services(parts),
    }
    made["step"] = _step(parts)
    made["hints"] = hints(made)
    made["answer"] = answer(made)
    return made


def _by_stage(nanoseconds: Any) -> dict[str, float]:
    return {name: float(ns) * 1e-9 for name, ns in zip(STAGES, nanoseconds, strict=True)}


def _seconds(value: Any) -> float:
    return float(value) * 1e-9


def _waits(part: Part) -> tuple[float, float, Any]:
    """Return how long a rank was in its steps, how long it waited there, and for what."""
    if part.head["steps"]:
        every = part.head["all"]
        return _seconds(every["length"]), _seconds(every["waited"]), every["stages"]
    stages = part.clients["waited_stages"].sum(0)
    return part.seconds, _seconds(part.clients["waited"].sum()), stages


def _rank(part: Part) -> Report:
    """What a simulation rank did: in its steps if it marks them, else in all."""
    length, waited, stages = _waits(part)
    return {
        "rank": part.rank,
        "host": part.host,
        "seconds": length,
        "computed": length - waited,
        "waited": waited,
        "waited_for": _by_stage(stages),
        "steps": int(part.head["steps"]),
        "step_length": figures(part.head["step_length"]),
        "step_waited": figures(part.head["step_waited"]),
        "last_steps": [
            {
                "begin": _seconds(step["begin"] - part.head["opened"]),
                "seconds": _seconds(step["length"]),
                "waited": _seconds(step["waited"]),
                "waited_for": _by_stage(step["stages"]),
            }
            for step in part.steps
        ],
    }


def _step(parts: Sequence[Part]) -> Report:
    """The mean step of a rank; without steps that are marked, the mean rank."""
    mine = [part for part in parts if part.head["role"] == SIMULATION]
    marked = any(part.head["steps"] for part in mine)
    count = sum(int(part.head["steps"]) for part in mine) if marked else len(mine)
    waits = [_waits(part) for part in mine if part.head["steps"] or not marked]
    count = max(count, 1)
    stages = sum((stages for _, _, stages in waits), 0 * parts[0].head["all"]["stages"])
    return {
        "marked": marked,
        "seconds": sum(length for length, _, _ in waits) / count,
        "waited": sum(waited for _, waited, _ in waits) / count,
        "waited_for": _by_stage(stages / count),
    }


def _services(parts: Sequence[Part]) -> Report:
    names = [client["name"].decode() for part in parts for client in part.clients]
    names += [head["name"].decode() for part in parts for head in part.heads]
    return {name: _service(name, parts) for name in dict.fromkeys(names)}


def _service(name: str, parts: Sequence[Part]) -> Report:
    key = name.encode()
    clients = [(p, c) for p in parts for c in p.clients if c["name"] == key]
    heads = [(p, h, late) for p in parts for h, late in zip(p.heads, p.late, strict=True)]
    heads = [(p, h, late) for p, h, late in heads if h["name"] == key]
    total = merge(client["total"] for _, client in clients)
    stages = [merge(c["stages"][i] for _, c in clients) for i in range(len(STAGES))]
    sums = {stage: _seconds(timing["sum"]) for stage, timing in zip(STAGES, stages, strict=True)}
    late = _late(late for _, _, late in heads)
    return {
        "requests": sum(int(client["requests"]) for _, client in clients),
        "total": figures(total),
        "stages": {name: figures(one) for name, one in zip(STAGES, stages, strict=True)},
        "largest": max(sums, key=lambda stage: sums[stage]) if any(sums.values()) else "",
        "straggler": _straggler(late, sums["batch"]),
        "late": late,
        "clients": [_client(part, client) for part, client in clients],
        "heads": [_head(part, head) for part, head, _ in heads],
    }


def _client(part: Part, client: Any) -> Report:
    requests, answered = int(client["requests"]), max(1, int(client["answered"]))
    return {
        "rank": part.rank,
        "requests": requests,
        "rows": int(client["rows"]),
        "batch_requests": float(client["batch_requests"]) / answered,
        "fallbacks": int(client["fallbacks"]),
        "untrusted_rows": int(client["untrusted_rows"]),
        "errors": codes(client["errors"]),
        "waited": _seconds(client["waited"]),
        "waited_for": _by_stage(client["waited_stages"]),
        "total": figures(client["total"]),
        "stages": {name: figures(one) for name, one in zip(STAGES, client["stages"], strict=True)},
    }


def _head(part: Part, head: Any) -> Report:
    batches = int(head["batches"])
    rows = float(head["rows"]) / batches if batches else 0.0
    return {
        "rank": part.rank,
        "host": part.host,
        "replica": int(head["replica"]),
        "batches": batches,
        "requests": int(head["requests"]),
        "rows": int(head["rows"]),
        "rows_a_batch": rows,
        "requests_a_batch": float(head["requests"]) / batches if batches else 0.0,
        "fill": rows / max(1.0, float(head["max_batch_rows"])),
        "in_place": int(head["in_place"]),
        "cache_lookups": int(head["lookups"]),
        "cache_hits": int(head["hits"]),
        "closed_by": {CLOSED[i]: int(head["closed"][i]) for i in range(1, len(CLOSED))},
        "max_batch_rows": int(head["max_batch_rows"]),
        "max_delay": _seconds(head["max_delay"]),
        "max_queue_rows": int(head["max_queue_rows"]),
        "engine": figures(head["engine"]),
        "errors": codes(head["errors"]),
    }


def _late(tables: Iterable[Any]) -> list[Report]:
    """The ranks that batches waited for, the latest one first."""
    every: dict[int, list[float]] = {}
    for table in tables:
        for rank in table["batches"].nonzero()[0]:
            one = every.setdefault(int(rank), [0, 0.0])
            one[0] += int(table["batches"][rank])
            one[1] += _seconds(table["waited"][rank])
    ranks = sorted(every, key=lambda rank: -every[rank][1])
    return [
        {"rank": rank, "batches": int(every[rank][0]), "waited": every[rank][1]} for rank in ranks
    ]


def _straggler(late: Sequence[Report], waited: float) -> int | None:
    """The rank that batches waited for more than for all others, if they waited at all."""
    total = sum(one["waited"] for one in late)
    if not late or late[0]["waited"] < total / 2 or waited <= 0:
        return None
    # Requests that came before the last one have waited, one or more for each batch.
    return int(late[0]["rank"]) if total > waited / (4 * len(late) + 4) else None


# ---- the text


def duration(seconds: float) -> str:
    """Write a time with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1e3 else f"{seconds:.0f} s"
    return f"{seconds * 1e9:.0f} ns"


def percent(part: float, whole: float) -> str:
    """Write a share."""
    return f"{100 * part / whole:.0f} %" if whole > 0 else "-"


def shares(times: dict[str, float], most: int = 4) -> str:
    """Name the largest of some times, each with its share."""
    total = sum(times.values())
    order = sorted(times, key=lambda name: -times[name])
    named = [name for name in order[:most] if times[name] > 0.005 * total]
    return ", ".join(f"{name} {percent(times[name], total)}" for name in named)


def answer(made: Report) -> str:
    """Answer how long a step waited for models, and for what, in one line."""
    step = made["step"]
    waited, length = step["waited"], step["seconds"]
    what = "a time step" if step["marked"] else "a simulation rank"
    text = f"{what} waited {duration(waited)} of {duration(length)} ({percent(waited, length)})"
    text += " for models"
    if causes := shares(step["waited_for"]):
        text += f": {causes}"
    ranks = made["simulation"]
    if len(ranks) > 1 and (most := max(ranks, key=lambda one: one["waited"]))["waited"]:
        mean = sum(one["waited"] for one in ranks) / len(ranks)
        if most["waited"] > 1.2 * mean:
            text += f"; most on rank {most['rank']}: {percent(most['waited'], most['seconds'])}"
    return text


def text(made: Report) -> str:
    """Write a report for people; its first line says how long a step waited for models."""
    if not made:
        return "no rank has measured anything"
    lines = [made["answer"]]
    for name, service in made["services"].items():
        lines += ["", *_service_lines(name, service)]
    if made["simulation"] and any(one["steps"] for one in made["simulation"]):
        lines += ["", *_step_lines(made["simulation"])]
    if made["missing"]:
        ranks = ", ".join(map(str, made["missing"][:SHOWN]))
        lines += ["", f"nothing is known here of ranks {ranks}: are their parts on another host?"]
    if made["open"]:
        ranks = ", ".join(map(str, made["open"][:SHOWN]))
        lines += ["", f"ranks that had not left the session: {ranks}"]
    lines += ["", *(f"hint: {hint}" for hint in made["hints"])] if made["hints"] else []
    return "\n".join(lines)


def _service_lines(name: str, service: Report) -> list[str]:
    total = service["total"]
    sums = {stage: one["sum"] for stage, one in service["stages"].items()}
    lines = [f"service {name}: {service['requests']} requests"]
    if total["count"]:
        lines[0] += (
            f" of {duration(total['p50'])} (p50), {duration(total['p99'])} (p99), "
            f"{duration(total['max'])} (max): {shares(sums)}"
        )
    if untrusted := sum(one["untrusted_rows"] for one in service["clients"]):
        rows = sum(one["rows"] for one in service["clients"])
        lines.append(f"  rows that were not trusted: {untrusted}, {percent(untrusted, rows)}")
    if lookups := sum(one["cache_lookups"] for one in service["heads"]):
        hits = sum(one["cache_hits"] for one in service["heads"])
        lines.append(f"  rows whose answers were kept: {hits}, {percent(hits, lookups)}")
    tables = (_client_rows(service["clients"]), _stage_rows(service), _head_rows(service["heads"]))
    for table in tables:
        lines += [*columns(table), ""]
    lines.pop()
    if service["late"]:
        named = ", ".join(
            f"rank {one['rank']} {duration(one['waited'])} ({one['batches']} batches)"
            for one in service["late"][:4]
        )
        lines.append(f"  batches waited for {named}")
    return lines


def _client_rows(clients: Sequence[Report]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("rank", "requests", "rows", "waited", "p50", "p99", "max", "mostly", "errors")
    ]
    order = sorted(clients, key=lambda one: -one["waited"])[:SHOWN]
    for one in sorted(order, key=lambda one: int(one["rank"])):
        sums = {stage: timing["sum"] for stage, timing in one["stages"].items()}
        times = [duration(one["total"][key]) for key in ("p50", "p99", "max")]
        counts = [str(one[key]) for key in ("rank", "requests", "rows")]
        ends = [shares(sums, 1) or "-", _errors(one["errors"])]
        rows.append((*counts, duration(one["waited"]), *times, *ends))
    return rows


def _stage_rows(service: Report) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("stage", "share", "p50", "p99", "max")]
    whole = sum(one["sum"] for one in service["stages"].values())
    for stage, one in service["stages"].items():
        if one["sum"]:
            times = [duration(one[key]) for key in ("p50", "p99", "max")]
            rows.append((stage, percent(one["sum"], whole), *times))
    return rows


def _head_rows(heads: Sequence[Report]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("head", "batches", "requests/batch", "rows/batch", "fill")
        + ("engine p50", "p99", "max", "sum", "errors")
    ]
    for one in heads[:SHOWN]:
        means = [f"{one['requests_a_batch']:.1f}", f"{one['rows_a_batch']:.1f}"]
        times = [duration(one["engine"][key]) for key in ("p50", "p99", "max", "sum")]
        counts = [str(one["rank"]), str(one["batches"]), *means, percent(one["fill"], 1)]
        rows.append((*counts, *times, _errors(one["errors"])))
    return rows


def _step_lines(ranks: Sequence[Report]) -> list[str]:
    rows: list[Sequence[str]] = [
        ("rank", "steps", "step p50", "p99", "max", "waited p50", "p99", "max")
    ]
    order = sorted(ranks, key=lambda one: -one["waited"])[:SHOWN]
    for one in sorted(order, key=lambda one: int(one["rank"])):
        lengths = [duration(one["step_length"][key]) for key in ("p50", "p99", "max")]
        waits = [duration(one["step_waited"][key]) for key in ("p50", "p99", "max")]
        rows.append((str(one["rank"]), str(one["steps"]), *lengths, *waits))
    return ["time steps", *columns(rows)]


def _errors(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "-"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns; a table of nothing but its heading is none."""
    if len(rows) < 2:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


# ---- the file


def write(made: Report, file: Path) -> None:
    """Write a report as JSON; readers see a whole file.

    Raises:
        OSError: If it cannot be written.
    """
    new = file.with_name(f"{file.name}.new{os.getpid()}")
    new.write_text(json.dumps(made, indent=1) + "\n")
    new.replace(file)
