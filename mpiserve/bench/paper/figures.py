"""The figures of merit of the experiments: rates, RT and BT by parts, and their medians."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]
Found = dict[str, Any]

CASE, BOOTSTRAP, RATIO = "paper", "paper_bootstrap", "paper_ratio"
MPISERVE, ZEROMQ, RADICAL = "mpiserve", "zeromq", "radical"
NAMES = {MPISERVE: "mpiserve", ZEROMQ: "ZeroMQ", RADICAL: "RADICAL-Pilot"}
SYSTEMS = (MPISERVE, ZEROMQ, RADICAL)
LABELS = ("model", "services", "clients", "tensor_parallel", "hosts")

# How the stages of a request of mpiserve make the parts of RT.
PARTS = {
    "out": ("copy in", "transport"),
    "queue": ("slot", "queue", "batch"),
    "inference": ("engine",),
    "service": ("reply", "unanswered"),
    "back": ("back", "copy out", "take"),
}
PHASES = ("launch", "init", "publish")  # of BT
PHASE_ENDS = ("launched", "ready")  # the states that end the first two
# Requests per second of a service that does nothing, by services and clients: the authors' own.
AUTHORS = {(1, 1): 3702, (1, 16): 11768, (4, 16): 25279, (16, 16): 17703}
BARS = {(1, 1): 10, (1, 16): 3}  # how many times the rate of RADICAL-Pilot's service


# ---- RT


def parts_of_stages(profile: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean microseconds of a request by part, of what mpiserve has measured."""
    stages, requests = profile["stages"], max(1, profile["requests"])
    return {
        part: sum(stages[stage] for stage in names) * 1e6 / requests
        for part, names in PARTS.items()
    }


def parts_of_stamps(found: Mapping[str, float]) -> dict[str, float]:
    """Return the same, of what a service with a socket says: its queue is in the way out."""
    times = {"out": found["before_us"], "queue": 0.0, "inference": found["inside_us"]}
    return times | {"service": 0.0, "back": found["after_us"]}


def response(system: str, found: Found) -> Row:
    """Return a turn's rate and RT: its mean by part, and quantiles."""
    one = found[system]
    parts = parts_of_stages(found["profile"]) if system == MPISERVE else parts_of_stamps(one)
    # What mpiserve has measured begins and ends inside of the calls that a client has timed.
    total = found["profile"]["seconds"] * 1e6 if system == MPISERVE else 0.0
    mean = total / max(1, found["profile"]["requests"]) if total else one["mean_us"]
    return {
        "value": one["rate"],
        "unit": "requests/s",
        "requests": one["requests"],
        "rt_us": round(mean, 3),
        "rt_p50_us": round(one["p50_us"], 3),
        "rt_p99_us": round(one["p99_us"], 3),
        "parts_us": {part: round(value, 3) for part, value in parts.items()},
    }


def in_three(row: Row) -> dict[str, float]:
    """Return RT as the authors split it: communication, service, inference, in microseconds."""
    parts = row["parts_us"]
    return {
        "communication": parts["out"] + parts["back"],
        "service": parts["queue"] + parts["service"],
        "inference": parts["inference"],
    }


# ---- BT


def bootstrap(found: Found, begun: float) -> Row:
    """Return the seconds by phase from the start of a job until its clients can use the service.

    Launch ends when the last inference rank has come to open the session, init when its model is
    loaded, publish when the last client has found the service.
    """
    launched, ready = (max(state[name] for state in found["states"]) for name in PHASE_ENDS)
    return phases(launched - begun, ready - launched, found["usable"] - ready)


def phases(launch: float, init: float, publish: float) -> Row:
    """Make the part of a row that says what BT was."""
    # A client may have found the service before its replica has noted that it is ready.
    each = [round(max(0.0, seconds), 4) for seconds in (launch, init, publish)]
    named = {f"{name}_s": value for name, value in zip(PHASES, each, strict=True)}
    return named | {"value": sum(each), "unit": "s"}


# ---- rows


def middle(turns: Sequence[Row]) -> Row:
    """Return the turn whose value is the median, so that its parts add up; with all values."""
    order = sorted(turns, key=lambda row: float(row["value"]))
    chosen = order[(len(order) - 1) // 2]
    return chosen | {"turns": [round(row["value"], 4) for row in turns]}


def rows_of(case: str, system: str, labels: Row, turns: Sequence[Row]) -> list[Row]:
    """Make the row of an experiment with a system, if it was measured."""
    if not turns:
        return []
    found = middle(turns)
    value = round(found["value"], 4 if found["value"] < 100 else 1)
    return [{"case": case, "system": system} | labels | found | {"value": value}]


def ratios(rows: Iterable[Row]) -> list[Row]:
    """Compare with the others, turn by turn: rows of the medians, with the bar if there is one."""
    measured = [row for row in rows if row["case"] == CASE]
    ours = {labels(row): row for row in measured if row["system"] == MPISERVE}
    rivals = [row for row in measured if row["system"] != MPISERVE]
    return [ratio(ours[labels(row)], row) for row in rivals if labels(row) in ours]


def ratio(ours: Row, rival: Row) -> Row:
    """Make the row of one comparison."""
    each = [a / b for a, b in zip(ours["turns"], rival["turns"], strict=False)]
    made = {"case": RATIO, "rival": rival["system"]} | dict(zip(LABELS, labels(ours), strict=True))
    bar = BARS.get((ours["services"], ours["clients"])) if rival["system"] == RADICAL else None
    made |= {"bar": bar} if bar and ours["model"] == "noop" else {}
    return made | {"value": round(median(each), 2), "unit": "times the rate"}


def labels(row: Row) -> tuple[Any, ...]:
    """Return what names the experiment of a row."""
    return tuple(row[name] for name in LABELS)
