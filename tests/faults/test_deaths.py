"""Fourteen kinds of death of a model, one after the other, while three clients ask all the time."""

from __future__ import annotations

from statistics import median

import pytest
from faults.running import LEFT_WITHIN, Seen, cases, check, seconds, started
from faults.table import PLAIN, Expect, Fault

CLIENTS = 3
KINDS = {
    "null_read": "SIGSEGV",
    "null_write": "SIGSEGV",
    "bad_instruction": "SIGILL",
    "bus_error": "SIGBUS",
    "divide_by_zero": "SIGFPE",
    "exit_7": "status 7",
    "exit_0": "status 0",
    "kill_itself": "SIGKILL",
    "terminate_itself": "SIGTERM",
    "abort": "SIGABRT",
    "overflow_stack": "SIGSEGV",
    "hang": "timeout_s",
    "spin": "timeout_s",
    "stop": "timeout_s",
}
GAP = 3  # steps between two deaths
FIRST = 4
DEATHS = Fault(
    5,
    "14 kinds of death",
    {PLAIN: Expect()},
    plan={
        "triggers": list(KINDS),
        "at": [FIRST + GAP * i for i in range(len(KINDS))],
        "steps": FIRST + GAP * (len(KINDS) + 1),
    },
    service={"timeout_s": 1.0, "restarts": 1000},
    seconds=120,
    quick=True,
)


@pytest.mark.parametrize(("fault", "mode"), cases([DEATHS]))
@pytest.mark.takes_long
def test_each_costs_the_guilty_request_alone(fault, mode, tmp_path):
    with started(tmp_path, fault, mode, clients=CLIENTS) as job:
        job.wait(fault.seconds)
        job.settle(LEFT_WITHIN)
        seen = Seen(job, fault, mode, CLIENTS)
        check(seen)
        texts = [event["text"] for event in seen.of("error")]
        for (kind, text), said in zip(KINDS.items(), texts, strict=True):
            assert text in said, (kind, said)
        waits = restarts(seen)
        print(*(f"{kind}: {seconds(wait)}" for kind, wait in waits.items()), sep="\n")
        print(f"from a death to the next answer: median {seconds(median(waits.values()))}")


def restarts(seen):
    """Return the seconds from the last death of each kind to the next right answer."""
    acts = [e for e in seen.events["model"] if e["kind"] == "act"]
    answers = sorted(e["time"] for e in seen.of("right"))
    last = {e["text"]: e["time"] for e in acts}
    return {kind: next(t for t in answers if t > time) - time for kind, time in last.items()}
