"""The ten thousand requests of tests/mpi/test_many_requests.py, of programs beside `serve`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coupling import PYTHON, SERVE
from jobs import ROOT
from mpi.test_many_requests import services

SIMULATION = """\
import mpiserve
from mpi.test_many_requests import ask

rows_sent = []
with mpiserve.open() as session:
    ask(session, rows_sent)
    counters = session.info()["counters"]
    how = ",".join(sorted(set(session.info()["transports"].values())))
assert (counters["requests"], counters["errors"]) == (len(rows_sent), 0), counters
assert counters["rows"] == sum(rows_sent), counters
print(f"client over {how}: {len(rows_sent)} requests", flush=True)
"""


def inline(value: Any) -> str:
    """Write a value of a configuration as TOML, in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


def write(folder: Path) -> None:
    """Put c.toml and sim.py into a folder."""
    tables = [f"{name} = {inline(service)}\n" for name, service in services().items()]
    (folder / "c.toml").write_text("[service]\n" + "".join(tables))
    (folder / "sim.py").write_text(SIMULATION)


def run(on_hosts: Callable[..., Any], folder: Path) -> tuple[list[str], list[int]]:
    """Run 5 clients and 4 heads on two hosts, the heads and two of the clients on the first.

    Returns:
        What the clients said, sorted, and how many requests each head answered.
    """
    write(folder)
    programs = [
        ["-n", 2, PYTHON, "sim.py"],
        ["-n", 4, *SERVE, "c.toml"],
        ["-n", 3, PYTHON, "sim.py"],
    ]
    path = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'tests/mpi'}"}
    done = on_hosts({"n1": 6, "n2": 3}, *programs, timeout=150, env=path)
    assert done.returncode == 0
    said = [line for line in done.stdout.splitlines() if line.startswith("client over")]
    heads = re.findall(r": (\d+) requests, 0 failed", done.stderr)
    return sorted(said), [int(count) for count in heads]
