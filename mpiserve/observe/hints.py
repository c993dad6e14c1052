"""Say what a setting has to do with what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

MUCH = 0.25  # of the time of requests: worth a hint
MANY = 8  # batches, before their size says something

Service = dict[str, Any]


def hints(report: dict[str, Any]) -> list[str]:
    """Return the hints of a report, those of the first service first."""
    return [
        f"service {name}: {hint}"
        for name, service in report["services"].items()
        for find in FINDERS
        if (hint := find(service))
    ]


def share(service: Service, *stages: str) -> float:
    """Return the part of the time of all requests that some stages have."""
    whole = sum(one["sum"] for one in service["stages"].values())
    some = sum(service["stages"][stage]["sum"] for stage in stages)
    return float(some / whole) if whole else 0.0


def regulars(service: Service) -> list[Service]:
    """Return the ranks that query about as often as the one that does so most."""
    most = max((one["requests"] for one in service["clients"]), default=0)
    return [one for one in service["clients"] if one["requests"] > most / 2]


def rows_of_all(service: Service) -> float:
    """Return the rows that the ranks send if each sends one request."""
    return float(sum(one["rows"] / one["requests"] for one in regulars(service)))


def _batches(service: Service) -> tuple[int, float, dict[str, int]]:
    """Return the batches of all heads, their requests on average, and why they were closed."""
    heads: Sequence[Service] = service["heads"]
    batches = sum(one["batches"] for one in heads)
    requests = sum(one["requests"] for one in heads)
    reasons = {
        reason: sum(one["closed_by"][reason] for one in heads)
        for reason in (heads[0]["closed_by"] if heads else ())
    }
    return batches, requests / batches if batches else 0.0, reasons


def _small_batches(service: Service) -> str:
    batches, requests, reasons = _batches(service)
    if batches < MANY or len(regulars(service)) < 2 or requests > 1.5:
        return ""
    most, rows = service["heads"][0]["max_batch_rows"], rows_of_all(service)
    begin = f"batches hold {requests:.1f} requests: "
    if rows > most * len(service["heads"]):
        return f"{begin}max_batch_rows {most} is below the {rows:.0f} rows of all ranks; raise it"
    if reasons["delay"] > batches / 2:
        delay = service["heads"][0]["max_delay"] * 1e6
        return (
            f"{begin}{reasons['delay']} of {batches} were closed by max_delay_us {delay:g} before "
            "other ranks came; raise it, or let the ranks query at the same time"
        )
    return ""


def _straggler(service: Service) -> str:
    if share(service, "batch") < MUCH or not service["late"]:
        return ""
    one, batches = service["late"][0], _batches(service)[0]
    if service["straggler"] is None:
        return "batches wait for ranks in turn: balance the work, or lower max_delay_us"
    return (
        f"batches waited for rank {one['rank']}, which came last {one['batches']} times in "
        f"{batches} batches: give it less work, or lower max_delay_us to go without it"
    )


def _waiting(service: Service) -> str:
    """Batches wait, and for nobody who comes."""
    if share(service, "batch") < MUCH or service["late"]:
        return ""
    return "batches wait for max_delay_us, and nobody comes: lower it"


def _queue(service: Service) -> str:
    if share(service, "queue") < MUCH:
        return ""
    limit = max((one["max_queue_rows"] for one in service["heads"]), default=0)
    text = "requests wait for the batches before them: more replicas, or a larger max_batch_rows"
    return text + (f"; max_queue_rows {limit} holds them back" if limit else "")


def _slot(service: Service) -> str:
    if share(service, "slot") < MUCH:
        return ""
    return (
        "requests wait until they can be sent: a rank has 4 under way at most, and large ones need "
        "room in pool_bytes; send fewer and larger ones, or raise pool_bytes"
    )


def _copies(service: Service) -> str:
    if share(service, "copy in", "copy out") < MUCH:
        return ""
    part = round(100 * share(service, "copy in", "copy out"))
    return (
        f"copies take {part} % of the time: requests without copies (empty_input, "
        "mpiserve_buffer_take) save them"
    )


def _take(service: Service) -> str:
    if share(service, "take") < MUCH:
        return ""
    ranks = sorted(service["clients"], key=lambda one: -one["stages"]["take"]["sum"])
    return (
        f"results are there before their rank looks, most of all on rank {ranks[0]['rank']}: "
        "a faster model would save nothing there"
    )


def _transport(service: Service) -> str:
    if share(service, "transport", "back") < 2 * MUCH or service["total"]["p50"] < 50e-6:
        return ""
    return "most of the time is transport: do ranks share cores, or does a node lack a replica?"


def _engine(service: Service) -> str:
    if share(service, "engine") < 2 * MUCH:
        return ""
    fill = max((one["fill"] for one in service["heads"]), default=0.0)
    text = "most of the time is the model: another engine or device"
    return text + (", or more replicas, as batches are full" if fill > 0.8 else "")


def _errors(service: Service) -> str:
    counts: dict[str, int] = {}
    for one in service["clients"]:
        for name, count in one["errors"].items():
            counts[name] = counts.get(name, 0) + count
    if not counts:
        return ""
    named = ", ".join(f"{count} with {name}" for name, count in counts.items())
    return f"{sum(counts.values())} requests failed: {named}"


FINDERS: tuple[Callable[[Service], str], ...] = (
    *(_errors, _small_batches, _straggler, _waiting, _queue, _slot),
    *(_copies, _take, _transport, _engine),
)
