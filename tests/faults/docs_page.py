"""Write docs/internals/faults.md from what the last run of all jobs has seen.

make test-faults && python tests/faults/docs_page.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.seen import ROOT, rows
from faults.table import ALIVE, EITHER, ENDS, FAULTS, Fault

PAGE = ROOT / "docs/internals/faults.md"
INTRODUCTION = """\
# Faults that were injected

Each row is a job of `tests/faults` with a real fault, seen under Open MPI 5.0.11 and MPICH 5.0.2
over both transports where the launcher is `plain`, under Open MPI's `--with-ft ulfm`, and under
MPICH's `-disable-auto-cleanup` (`no cleanup`). "Jobs" counts those that went as they must, of those
that ran: texts, answers of others, exit status, processes and files that remain. "Next answer" is
the time from the fault to the next right answer that any rank gets, on a busy machine with 2 cores.
What is said stands for all jobs of a row; numbers and names differ. Rows of "two hosts" have the
inference rank to which it happens on a host of its own (a network namespace), where Puts and Gets
are messages. With "requests in pieces" every second request has more rows than a batch may have;
"ragged requests" have rows of their own and indices into them. What is "captured" leaves files that
open, with right answers alone.

`make test-faults` runs the jobs, `python tests/faults/docs_page.py` writes this page from what they
saw. [What a job survives](../guide/survival.md) says what to do about it.

"""
LONG = 130  # characters: running.py cuts texts
JOBS = {ALIVE: "goes on", ENDS: "is ended", EITHER: "goes on, or is ended"}
COLUMNS = ("fault", "launcher", "the job", "next answer", "what is said", "jobs")


def milliseconds(text: str) -> float:
    """Read a time that running.seconds wrote."""
    number, _, unit = text.partition(" ")
    return float(number) * (1000 if unit == "s" else 1)


def spread(seen: list[dict[str, Any]]) -> str:
    """Return the shortest and the longest time to the next answer."""
    times = sorted((row["next answer"] for row in seen if row["next answer"]), key=milliseconds)
    return " to ".join(dict.fromkeys(times[:1] + times[-1:]))


def said(seen: list[dict[str, Any]]) -> str:
    """Return what was said in one of the jobs, without the time of the log."""
    text = next((row["what was said"] for row in seen if row["what was said"]), "")
    text = re.sub(r"[|`\n]", " ", text).strip("\0 ")
    text = re.sub(r"^\d{4}-\S+ \S+ ", "", text)
    text = re.sub(r"on host [\w.-]+", "on host node1", text)
    return f"`{text}{' ...' * (len(text) > LONG)}`" if text else ""


def line(fault: Fault, mode: str, seen: list[dict[str, Any]]) -> str:
    """Return the row of a fault under one launcher."""
    good = sum(row[""] == "as it must be" for row in seen)
    counted = f"{good} of {len(seen)}"
    cells = [fault.key, mode, JOBS[fault.expect[mode].job], spread(seen), said(seen), counted]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """Return the whole page."""
    seen = list(rows())
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for fault in sorted(FAULTS, key=lambda fault: fault.number):
        for mode in fault.expect:
            mine = [r for r in seen if (r["fault"], r["launched"]) == (fault.key, mode)]
            if mine:
                lines.append(line(fault, mode, mine))
    return INTRODUCTION + "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
