"""The program `top`: what the services of running jobs do, live."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve import terminal
from mpiserve.observe.exposition import run_label
from mpiserve.observe.parts import TIMING, figures
from mpiserve.observe.ranks import Rank, Ranks, allow_many

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 16  # simulation ranks of a job in the tables
NONE = "no job of this user runs on this node"
UNMEASURED = "for p50 and p99 start the job with MPISERVE_METRICS=on"

GUESTS = ("trainer", "gateway")  # roles
COUNTED = (
    *("requests", "errors", "rows", "batches"),
    *("cache_lookups", "cache_hits", "cached_requests"),
)

View = dict[str, Any]


@dataclass
class Look:
    """What was found at one moment.

    Attributes:
        seconds: By the monotonic clock.
        ranks: Of all jobs.
        foreign: Processes of jobs of other versions, with these.
    """

    seconds: float
    ranks: Sequence[Rank]
    foreign: Sequence[tuple[int, str]] = ()


# ---- what to show


def view(before: Look, now: Look) -> View:
    """Compare two looks: what the jobs do, and how fast."""
    past = max(1e-9, now.seconds - before.seconds)
    earlier = {(rank.run, rank.rank): rank for rank in before.ranks}
    jobs: dict[int, list[Rank]] = {}
    for rank in now.ranks:
        jobs.setdefault(rank.run, []).append(rank)
    return {
        "time": time.time(),
        "jobs": [_job(ranks, earlier, past) for ranks in jobs.values()],
        "other_versions": [{"pid": pid, "version": version} for pid, version in now.foreign],
    }


def _job(ranks: Sequence[Rank], earlier: dict[tuple[int, int], Rank], past: float) -> View:
    names = [service["name"] for rank in ranks for service in rank.services]
    pairs = [(rank, earlier.get((rank.run, rank.rank))) for rank in ranks]
    return {
        "run": run_label(ranks[0].run),
        "host": ranks[0].head["host"].decode(errors="replace"),
        "version": ranks[0].head["library"].decode(errors="replace"),
        "seconds": max(0.0, time.time() - ranks[0].opened),
        "ranks": int(ranks[0].head["size"]),
        "ranks_here": len(ranks),
        "measured": any(rank.part is not None for rank in ranks),
        "services": [_service(name, pairs, past) for name in dict.fromkeys(names)],
        "loading": [rank.rank for rank in ranks if rank.is_loading],
        "guests": [{"role": r.role, "rank": r.rank} for r in ranks if r.role in GUESTS],
        "simulation": [
            _client(rank, old, past) for rank, old in pairs if rank.role == "simulation"
        ],
    }


def _service(name: str, pairs: Sequence[tuple[Rank, Rank | None]], past: float) -> View:
    replicas = [
        _replica(rank, service, _named(old, name), past)
        for rank, old in pairs
        for service in rank.services
        if service["name"] == name
    ]
    rates = ("requests_per_s", "rows_per_s", "batches_per_s")
    return {
        "name": name,
        **{rate: sum(replica[rate] for replica in replicas) for rate in rates},
        "response": _times(pairs, name, "clients", "total"),
        "inference": _times(pairs, name, "heads", "engine"),
        "replicas": replicas,
    }


def _named(rank: Rank | None, name: str) -> View | None:
    services = rank.services if rank else ()
    return next((service for service in services if service["name"] == name), None)


def _replica(rank: Rank, service: View, old: View | None, past: float) -> View:
    counters = service["counters"]
    was = old["counters"] if old else dict.fromkeys(counters, 0)
    done = {key: counters[key] - was[key] for key in COUNTED}
    # If it has rested: how its batches were until now.
    fresh = done if done["batches"] else {key: counters[key] for key in done}
    rows = (fresh["rows"] - fresh["cache_hits"]) / fresh["batches"] if fresh["batches"] else 0.0
    answered = fresh["requests"] - fresh["errors"] - fresh["cached_requests"]
    kept = done if done["cache_lookups"] else {key: counters[key] for key in done}
    running = (rank.seen - service["batch_ns"]) * 1e-9 if service["batch_open"] else 0.0
    return {
        "replica": service["replica"],
        "rank": rank.rank,
        "pid": rank.pid,
        "spare": bool(service["spare"]),
        "state": service["state"],
        "since": service["state_ns"] * 1e-9,
        "queue_requests": service["queue_requests"],
        "queue_rows": service["queue_rows"],
        "held": service["held"],
        "batch_seconds": max(0.0, running),
        "requests_a_batch": answered / fresh["batches"] if fresh["batches"] else 0.0,
        "rows_a_batch": rows,
        "fill": rows / max(1, service["max_batch_rows"]),
        "clients_asked": service["asked"],
        "clients_counted": service["able"],
        "placement": service["placement"],
        "hit_rate": kept["cache_hits"] / kept["cache_lookups"] if kept["cache_lookups"] else None,
        "errors": counters["errors"],
        "requests": counters["requests"],
        "requests_per_s": done["requests"] / past if old else 0.0,
        "rows_per_s": done["rows"] / past if old else 0.0,
        "batches_per_s": done["batches"] / past if old else 0.0,
    }


def _client(rank: Rank, old: Rank | None, past: float) -> View:
    counters = rank.counters
    done = counters["requests"] - (old.counters["requests"] if old else counters["requests"])
    return {
        "rank": rank.rank,
        "pid": rank.pid,
        "requests": counters["requests"],
        "errors": counters["errors"],
        "fallbacks": counters["fallbacks"] + counters["local_answers"],
        "untrusted_rows": counters["untrusted_rows"],
        "requests_per_s": done / past,
        "waits": rank.waits,
        "waits_for": int(rank.head["waits_for"]) if rank.waits else None,
    }


def _times(pairs: Iterable[tuple[Rank, Rank | None]], name: str, side: str, key: str) -> View:
    """Describe the times of this interval; if there are none, of all until now."""
    now, before = np.zeros(1, TIMING)[0], np.zeros(1, TIMING)[0]
    for rank, old in pairs:
        for total, one in ((now, rank), (before, old)):
            _add(total, one, name.encode(), side, key)
    fresh = now.copy()
    for part in ("count", "sum", "buckets"):
        fresh[part] = now[part] - before[part]
    return figures(fresh if 0 < fresh["count"] < now["count"] else now)


def _add(total: Any, rank: Rank | None, name: bytes, side: str, key: str) -> None:
    for record in getattr(rank.part, side) if rank and rank.part else ():
        if record["name"] == name:
            for part in ("count", "sum", "buckets"):
                total[part] += record[key][part]
            total["most"] = max(total["most"], record[key]["most"])


# ---- lines


def lines(seen: View) -> list[str]:
    """Write a view as lines that stand for themselves: for logs."""
    found = [line for job in seen["jobs"] for line in _job_lines(job)]
    found += [_other(one) for one in seen["other_versions"]]
    return found or [NONE]


def _other(one: View) -> str:
    return (
        f"process {one['pid']} is a rank of mpiserve {one['version']}, which this version cannot "
        "read: use the `mpiserve top` of that one"
    )


def _job_lines(job: View) -> list[str]:
    head = f"job {job['run']}"
    found = [f"{head}: {_about(job)}"]
    for service in job["services"]:
        times = f", {known}" if (known := _quantiles(service)) else ""
        for one in service["replicas"]:
            found.append(
                f"{head}: {service['name']}/{one['replica']} rank {one['rank']} {one['state']}: "
                f"{one['requests_per_s']:.4g} requests/s, "
                f"batches of {one['rows_a_batch']:.4g} rows ({100 * one['fill']:.0f} %), "
                f"{_kept(one)}queue {one['queue_requests']}, errors {one['errors']}{times}"
            )
    found += [f"{head}: {line}" for line in _placements(job)]
    if waiting := _waiting(job):
        found.append(f"{head}: {waiting}")
    return found


def _kept(replica: View) -> str:
    rate = replica["hit_rate"]
    return "" if rate is None else f"{_percent(rate)} of rows kept, "


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _placements(job: View) -> list[str]:
    """Say which model answers the services that have a local and a remote one, and why."""
    return [
        f"{service['name']}/{one['replica']} rank {one['rank']}: {_placement(one['placement'])}"
        for service in job["services"]
        for one in service["replicas"]
        if one["placement"]
    ]


def _placement(placed: View) -> str:
    costs = [
        f"{_duration((placed[f'{model}_call_ns'] + placed[f'{model}_row_ns']) * 1e-9)} {where}"
        for model, where in (("local", "here"), ("remote", "there"))
    ]
    counts = ", ".join(f"{how} {placed[f'{how}_rows']}" for how in ("local", "remote", "returned"))
    return (
        f"the {placed['side']} model answers; a row takes {' and '.join(costs)}; rows: {counts}; "
        f"{placed['changes']} changes; breaker {placed['breaker']}, opened {placed['opened']} times"
    )


def _about(job: View) -> str:
    ranks = f"{job['ranks']} ranks"
    if job["ranks_here"] < job["ranks"]:
        ranks += f", {job['ranks_here']} of them on this node ({job['host']})"
    text = f"{ranks}, open for {job['seconds']:.0f} s, mpiserve {job['version']}"
    if job["loading"]:
        text += f"; loading: ranks {', '.join(map(str, job['loading'][:SHOWN]))}"
    for one in job["guests"]:
        text += f"; {one['role']}: rank {one['rank']}"
    return text


def _quantiles(service: View) -> str:
    response = service["response"]
    if not response["count"]:
        return ""
    return f"p50 {_duration(response['p50'])}, p99 {_duration(response['p99'])}"


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns" if seconds else "-"


def _waiting(job: View) -> str:
    """Say who waits for whom, those first who have waited longest."""
    ranks = sorted((one for one in job["simulation"] if one["waits"]), key=lambda o: -o["waits"])
    named = [
        f"rank {one['rank']} {_duration(one['waits'])} for rank {one['waits_for']}"
        for one in ranks[:SHOWN]
    ]
    more = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
    return f"waiting: {', '.join(named)}{more}" if named else ""


# ---- tables


def tables(seen: View) -> Table:
    """Draw a view for a terminal."""
    from rich.table import Table
    from rich.text import Text

    found: list[Any] = []
    for job in seen["jobs"]:
        found += [Text(f"job {job['run']}: {_about(job)}", style="bold"), _services_table(job)]
        found += [Text(text) for text in (*_placements(job), _waiting(job)) if text]
        found += [_clients_table(job)] if job["simulation"] else []
        found += [] if job["measured"] else [Text(UNMEASURED, style="dim")]
    found += [Text(_other(one), style="yellow") for one in seen["other_versions"]]
    page = Table.grid()
    for part in found or [Text(NONE)]:
        page.add_row(part)
    return page


STYLES = {"ready": "green", "busy": "cyan", "failed": "red", "gone": "red"}


def _services_table(job: View) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=False, pad_edge=False)
    for name in ("service", "replica", "rank", "state"):
        table.add_column(name)
    right = ("requests/s", "p50", "p99", "engine", "queue", "asked", "rows/batch", "fill", "errors")
    every = [one for service in job["services"] for one in service["replicas"]]
    keeps = ("kept",) if any(one["hit_rate"] is not None for one in every) else ()
    for name in right + keeps:
        table.add_column(name, justify="right")
    for service in job["services"]:
        times = [service["response"]["p50"], service["response"]["p99"]]
        times.append(service["inference"]["p50"])
        for one in service["replicas"]:
            state = one["state"] + (" (spare)" if one["spare"] else "")
            table.add_row(
                *(service["name"], str(one["replica"]), str(one["rank"])),
                Text(state, style=STYLES.get(one["state"], "yellow")),
                *(f"{one['requests_per_s']:.4g}", *map(_duration, times)),
                str(one["queue_requests"] + one["held"]),
                f"{one['clients_asked']}/{one['clients_counted']}",
                *(f"{one['rows_a_batch']:.4g}", f"{100 * one['fill']:.0f} %", str(one["errors"])),
                *(_percent(one["hit_rate"]) for _ in keeps),
            )
    return table


def _clients_table(job: View) -> Any:
    from rich.table import Table

    table = Table(expand=False, pad_edge=False)
    names = ("simulation rank", "requests", "requests/s", "errors", "fallbacks")
    for name in (*names, "untrusted rows", "waits"):
        table.add_column(name, justify="right")
    for one in job["simulation"][:SHOWN]:
        counts = [str(one["requests"]), f"{one['requests_per_s']:.4g}", str(one["errors"])]
        waits = f"{_duration(one['waits'])} for {one['waits_for']}" if one["waits"] else "-"
        counts += [str(one["fallbacks"]), str(one["untrusted_rows"])]
        table.add_row(str(one["rank"]), *counts, waits)
    return table


# ---- the program


def top(*, once: bool = False, as_json: bool = False, every: float = 1.0) -> int:
    """Show the running jobs of this user on this node, until Ctrl-C.

    Args:
        once: Look twice, a moment apart, show what was found, and end.
        as_json: Print an object a line.
        every: Seconds between two looks.

    Returns:
        The exit status: 1 with `once` if there is no job that can be read.
    """
    allow_many()
    ranks = Ranks()
    before = _look(ranks)
    if once:
        time.sleep(every if before.ranks else 0)
        seen = view(before, _look(ranks))
        print(json.dumps(seen) if as_json else _plain(seen))
        return 0 if seen["jobs"] else 1
    show = _shown_json if as_json else _shown_lines
    try:
        if terminal.live() and not as_json:
            _follow_live(ranks, before, every)
        else:
            _follow(ranks, before, every, show)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # of `mpiserve top | head`
        sys.stderr.close()
    return 0


def _look(ranks: Ranks) -> Look:
    ranks.find()
    return Look(time.monotonic(), ranks.read(), [(one.pid, one.library) for one in ranks.foreign])


def _plain(seen: View) -> str:
    if terminal.live():
        console = terminal.console()
        with console.capture() as text:
            console.print(tables(seen))
        return str(text.get()).rstrip()
    return "\n".join(lines(seen))


def _shown_json(seen: View) -> None:
    print(json.dumps(seen), flush=True)


def _shown_lines(seen: View) -> None:
    clock = time.strftime("%H:%M:%S")
    print("\n".join(f"{clock} {line}" for line in lines(seen)), flush=True)


def _follow(ranks: Ranks, before: Look, every: float, show: Callable[[View], None]) -> None:
    while True:
        time.sleep(every)
        now = _look(ranks)
        show(view(before, now))
        before = now


def _follow_live(ranks: Ranks, before: Look, every: float) -> None:
    from rich.live import Live

    console = terminal.console()
    with Live(tables(view(before, before)), console=console, screen=True, auto_refresh=False) as on:
        while True:
            time.sleep(every)
            now = _look(ranks)
            on.update(tables(view(before, now)), refresh=True)
            before = now
