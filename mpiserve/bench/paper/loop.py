"""Send requests one after the other for a while, and sum up what many clients measured.

This file needs nothing but Python: the clients of RADICAL-Pilot, whose environment has no mpiserve,
import it too.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

# Sends a request and waits for the answer. Returns when its service began and ended to work on it,
# by the monotonic clock in nanoseconds, or None.
Call = Callable[[], Sequence[int] | None]
Loop = dict[str, Any]


def closed_loop(call: Call, seconds: float) -> Loop:
    """Send a request when the one before it is answered, until the time is over; at least one."""
    clock = time.monotonic_ns
    times, before, inside = array("q"), 0, 0
    begin = now = clock()
    until = begin + int(seconds * 1e9)
    while not times or now < until:
        stamps = call()
        then = clock()
        times.append(then - now)
        if stamps:
            before += stamps[0] - now
            inside += stamps[1] - stamps[0]
        now = then
    return {"begin": begin, "end": now, "times": times, "before": before, "inside": inside}


def merged(loops: Sequence[Loop]) -> dict[str, float]:
    """Sum up the loops of clients that ran at the same time.

    Returns:
        The number of requests, those per second from the first begin to the last end, and
        microseconds of a request: the mean, p50 and p99 of the whole; and the means of the time
        before the service began, inside the service, and after it.
    """
    times = sorted(nanoseconds for loop in loops for nanoseconds in loop["times"])
    count = len(times)
    seconds = (max(one["end"] for one in loops) - min(one["begin"] for one in loops)) * 1e-9
    total, before, inside = (
        sum(values) / count / 1000
        for values in (times, [one["before"] for one in loops], [one["inside"] for one in loops])
    )
    return {
        "requests": count,
        "rate": count / seconds,
        "mean_us": total,
        "p50_us": times[count // 2] / 1000,
        "p99_us": times[min(count - 1, count * 99 // 100)] / 1000,
        "before_us": before,
        "inside_us": inside,
        "after_us": total - before - inside,
    }
