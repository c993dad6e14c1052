"""Run one row of the table under one launcher mode, and compare what is seen with the table."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import mpijob
import pytest
from coupling import PYTHON, SERVE
from faults import table
from faults.seen import SEEN
from faults.table import ALIVE, EITHER, ENDS, KEPT, PLAIN, ULFM, Expect, Fault
from faults.two_hosts import ON_HOSTS, two_hosts
from faults.watched import Watched, job

from mpiserve.config.service import ServiceConfig

JOB = Path(__file__).with_name("job")
# Short waits: of a close for ranks that are missing, of an abort, of an open, of notices.
ENV = {
    "MPISERVE_CLOSE_TIMEOUT": "3",
    "MPISERVE_GRACE": "2",
    "MPISERVE_OPEN_TIMEOUT": "25",
    "MPISERVE_WAIT_NOTICE": "2",
}
PLAN = {
    "steps": 20,
    "at": [],
    "guilty": 1,
    "triggers": [],
    "act": "",
    "broken": False,
    "fallback": False,
    "lockstep": False,
    "ragged": False,
    "grow": 0,
    "pause": 0.0,
    "seconds": 0.0,
    "every": 5.0,
    "silent": 12.0,
    "timeout": 30.0,
}
FLAGS = {PLAIN: [], ULFM: ["--with-ft", "ulfm"], KEPT: ["-disable-auto-cleanup"]}
# Its own status hides a signal from MPICH's launcher, which would kill the survivors for it.
BEHIND_SHELL = ["bash", "-c", 'trap "" USR1; "$@"; exit $(($? > 128 ? 7 : $?))', "bash"]
LEFT_WITHIN = 10.0  # seconds in which everything of a job must be gone
SERVICE = """
[service.{name}]
backend = "python"
model = "models:{model}"
{tensors}
max_batch_rows = {rows}
max_delay_us = 20000
replicas = {replicas}
{settings}
"""
TENSORS = """
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 3] }]
"""
RAGGED = """
rows = "ragged"
inputs = [
  { name = "x", dtype = "float32", shape = ["nodes", 3], max_shape = [64, 3] },
  { name = "order", dtype = "int64", shape = ["nodes"], max_shape = [64], index_of = "nodes" },
]
outputs = [{ name = "y", dtype = "float32", shape = ["nodes", 3], max_shape = [64, 3] }]
"""


GATEWAY = """
[gateway]
endpoint_file = "endpoint.json"
"""


def mpi() -> str:
    return mpijob.flavour(mpijob.mpiexec())


def transport() -> str:
    return os.environ.get("MPISERVE_TRANSPORT", "shared")


def cases(faults: list[Fault]) -> list[Any]:
    """Return the parameters of the tests of these rows, under the MPI of this environment."""
    found = []
    for fault in faults:
        for mode in fault.expect:
            if mpi() not in table.MODES[mode]:
                continue
            marks = [pytest.mark.timeout(fault.seconds + 60)]
            if transport() not in fault.transports:
                marks.append(pytest.mark.skip(reason=f"with {fault.transports[0]} only"))
            elif fault.quick:
                marks.append(pytest.mark.quick)
            name = f"{fault.key} {mode}".replace(" ", "-").replace(":", "")
            found.append(pytest.param(fault, mode, id=name, marks=marks))
    return found


def write(folder: Path, fault: Fault) -> None:
    """Put the programs and the configuration of a job into its folder."""
    for path in JOB.iterdir():
        if path.suffix == ".py":
            shutil.copy(path, folder)
    known = {
        key: value for key, value in fault.service.items() if key in ServiceConfig.model_fields
    }
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in known.items())
    replicas = fault.inference - bool(fault.broken)
    rows = fault.batch_rows or max(256, 4 * fault.plan.get("grow", 0))
    model, tensors = ("reordered", RAGGED) if fault.plan.get("ragged") else ("answer", TENSORS)
    same = {"tensors": tensors, "rows": rows, "settings": settings}
    text = SERVICE.format(name="twice", model=model, replicas=replicas, **same)
    if fault.broken:
        text += SERVICE.format(name="broken", model=fault.broken, replicas=1, **same)
    if fault.gateway is not None:
        text += "\n".join([GATEWAY, *(f"{key} = {value}" for key, value in fault.gateway.items())])
    text += "[capture]\nflush_s = 0.2\n" if fault.capture else ""
    (folder / "c.toml").write_text(text)


def words(fault: Fault, mode: str, clients: int) -> list[Any]:
    """Return the arguments of mpiexec."""
    shell = BEHIND_SHELL if mode == KEPT else []
    plan = json.dumps(PLAN | fault.plan)
    ask = ["-n", clients, *shell, PYTHON, "simulate.py", plan]
    words = [*FLAGS[mode], *ask, ":", "-n", fault.inference, *shell, *SERVE, "c.toml"]
    if fault.gateway is not None:
        words += [":", "-n", 1, *shell, PYTHON, "-m", "mpiserve", "gateway", "c.toml"]
    return words


@contextmanager
def started(
    folder: Path, fault: Fault, mode: str, *, clients: int = 2, **streams: Any
) -> Iterator[Watched]:
    """Start the job of a row."""
    write(folder, fault)
    env = ENV | {"PYTHONPATH": str(folder), "XDG_RUNTIME_DIR": ""}
    arguments = words(fault, mode, clients)
    if fault.hosts:
        slots = {"n1": clients + fault.inference - 1, "n2": 1}
        with two_hosts(folder, slots) as (place, flags):
            env |= ON_HOSTS
            with job(folder, [*flags, *arguments], env=env, place=place) as watched:
                yield watched
        return
    with job(folder, arguments, env=env, shm=fault.shm, **streams) as watched:
        yield watched


@dataclass
class Seen:
    """What was seen of a job that has ended.

    `act` is when the last fault happened, as far as it is known; `woken` when a rank that was
    silent went on, for which nobody may have waited.
    """

    watched: Watched
    fault: Fault
    mode: str
    clients: int
    act: float | None = None
    woken: float | None = None

    def __post_init__(self) -> None:
        self.events = self.watched.events()
        self.woken = next((event["time"] for event in self.of("woke")), self.woken)
        acts = [e["time"] for es in self.events.values() for e in es if e["kind"] == "act"]
        if acts:
            self.act = max([*acts, self.act or 0.0])

    @property
    def dead(self) -> int:
        """The client that ends by itself, or -1."""
        return self.fault_plan["guilty"] if self.fault_plan["act"] else -1

    @property
    def fault_plan(self) -> dict[str, Any]:
        return PLAN | self.fault.plan

    def of(self, *kinds: str, guilty: bool | None = None) -> list[dict[str, Any]]:
        """Return the events of these kinds of all clients, but for those of the model."""
        every = [e for name, es in self.events.items() if name != "model" for e in es]
        every = [e for e in every if e["kind"] in kinds]
        return [e for e in every if guilty is None or e.get("guilty") == guilty]

    def next_answer(self) -> float | None:
        """Return the seconds from the last fault to the next answer that is right."""
        after = [e["time"] for e in self.of("right") if self.act and e["time"] > self.act]
        return min(after) - self.act if after and self.act else None

    def said(self, pattern: str) -> str:
        """Return what first fits a pattern: an error, else a line of the log or of the launcher."""
        texts = [e["text"] for e in self.of("error", "unclosed", "refused")]
        streams = self.watched.text("stderr") + self.watched.text("stdout")
        for text in [*texts, *streams.splitlines()]:
            if text and re.search(pattern, text):
                return text.strip()
        return ""

    def lost(self) -> list[str]:
        """Name the clients that should have ended and did not, and requests without an end."""
        found = []
        for rank in range(self.clients):
            if rank == self.dead:
                continue
            events = self.events.get(str(rank), [])
            ended = [e for e in events if e["kind"] in ("right", "wrong", "error")]
            ended = [e for e in ended if e["step"] >= 0]
            ends = [e["time"] for e in events if e["kind"] == "end"]
            if not ends:
                found.append(f"client {rank} did not end, after {len(ended)} answers")
            elif len(ended) != 2 * self.fault_plan["steps"]:
                found.append(f"client {rank} has {len(ended)} answers")
            if self.woken and max(ends, default=0.0) > self.woken:
                found.append(f"client {rank} waited for a silent rank")
        return found


def problems(seen: Seen, expect: Expect) -> list[str]:
    """Return what differs from the table; nothing if all is as it must be."""
    watched, found = seen.watched, []
    if watched.status is None:
        found.append(f"the job did not end within {seen.fault.seconds:g} s")
    if wrong := seen.of("wrong"):
        found.append(f"{len(wrong)} wrong answers")
    if expect.job == ALIVE:
        found += seen.lost()
    if expect.job == ENDS and watched.status == 0:
        found.append("the job ended with status 0")
    if expect.job != ENDS and expect.status is not None and watched.status != expect.status:
        found.append(f"the launcher ended with status {watched.status}")
    found += answers(seen, expect)
    if expect.text and not seen.said(expect.text):
        found.append(f"nobody said {expect.text!r}")
    if expect.closes and (unclosed := seen.of("unclosed")):
        found.append(f"close failed: {unclosed[0]['text']}")
    if seen.fault.capture:
        found += not_captured(watched.folder / "capture")
    if watched.left:
        found.append(f"processes remain: {watched.left}")
    files = [name for name in watched.shm if not re.fullmatch(expect.stays, name)]
    files += watched.session if expect.session else []
    if files:
        found.append(f"files remain: {files}")
    return found


def not_captured(folder: Path) -> list[str]:
    """Return what is wrong with the files of a capture."""
    found, rows = [], 0
    for path in folder.glob("[0-9a-f]*.h5"):
        try:
            with h5py.File(path) as file:
                x, y = file["twice/inputs/x"][:], file["twice/outputs/y"][:]
        except (OSError, KeyError) as error:
            found.append(f"{path.name}: {error}")
            continue
        rows += len(x)
        found += [f"{path.name}: wrong answers"] * (not (y == 2 * x + 1).all())
    return found if rows else [*found, "nothing is captured"]


def answers(seen: Seen, expect: Expect) -> list[str]:
    """Return which requests ended otherwise than the table says."""
    found = []
    guilty = seen.of("right", "error", guilty=True)
    if expect.guilty != "any":
        other = [e for e in guilty if e["kind"] != expect.guilty]
        if other or not guilty:
            found.append(f"the guilty requests ended with {kinds(guilty) or 'nothing'}")
    errors = seen.of("error", guilty=False)
    if expect.errors is not None and len(errors) > expect.errors:
        found.append(f"{len(errors)} requests of others failed: {errors[0]['text']}")
    return found


def kinds(events: list[dict[str, Any]]) -> str:
    return ", ".join(sorted({event["kind"] for event in events}))


def record(seen: Seen, expect: Expect, found: list[str]) -> None:
    """Write down a line for the table of what was seen."""
    folder = os.environ.get("MPISERVE_TEST_DIR")
    if not folder:
        return
    verdict = f"WRONG: {'; '.join(found)}" if found else "as it must be"
    row = {
        "fault": seen.fault.key,
        "launched": seen.mode,
        "MPI": mpi(),
        "transport": transport(),
        "what was said": shown(seen, expect),
        "next answer": seconds(seen.next_answer()),
        "job": f"{seen.watched.seconds:.1f} s",
        "requests of others": counted(seen),
        "status": seen.watched.status,
        "left behind": remains(seen.watched),
        "": verdict[:300],
    }
    with Path(folder, SEEN).open("a") as file:
        file.write(json.dumps(row) + "\n")


def shown(seen: Seen, expect: Expect) -> str:
    texts = [event["text"] for event in seen.of("error", "unclosed", "refused")]
    text = seen.said(expect.text) if expect.text else ""
    return (text or (texts[0] if texts else ""))[:160]


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def counted(seen: Seen) -> str:
    numbers = {kind: len(seen.of(kind, guilty=False)) for kind in ("right", "error", "wrong")}
    return ", ".join(f"{number} {kind}" for kind, number in numbers.items() if number)


def remains(watched: Watched) -> str:
    names = [process.command.split()[0] for process in watched.left if process.command]
    return ", ".join([*names, *watched.shm, *watched.session])[:120]


def check(seen: Seen) -> None:
    """Compare with the table, write down what was seen, and fail where it differs."""
    expect = seen.fault.expect[seen.mode]
    found = problems(seen, expect)
    record(seen, expect, found)
    print(*found, sep="\n", file=sys.stderr)
    assert not found, found


__all__ = ["EITHER", "Seen", "cases", "check", "mpi", "started", "transport"]
