"""A simulation rank of the jobs here: it asks, compares every answer, and writes down each end.

    simulate.py PLAN

PLAN is JSON; running.py has what it says by default. Each step submits a request that rides in a
slot and one in leased rows. At the steps `at` rank `guilty` puts one of `triggers` into one of the
two, or does `act` itself. With `grow` the large requests have so many rows from then on, and each
rank first waits for the file "ready". With `seconds` there is no list of steps: a trigger comes
each `every` seconds, and right answers are not written down. With `ragged` requests also say in
which order they want their answers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
from models import right, trigger

import mpiserve

PLAN = json.loads(sys.argv[1])
SMALL, LARGE = 2, 40  # rows


class Diary:
    """The events of this rank, each a line that is on disk before the next statement."""

    def __init__(self, rank: int) -> None:
        self.file = Path(f"events.{rank}").open("w", buffering=1)  # noqa: SIM115

    def write(self, kind: str, **fields: object) -> None:
        self.file.write(json.dumps({"time": time.monotonic(), "kind": kind, **fields}) + "\n")


def rows(rank: int, step: int, number: int) -> np.ndarray:
    """Rows that no other request has."""
    start = rank + 0.125 * (step % 64)
    return (start + np.arange(3 * number, dtype=np.float32) % 1024 / 256).reshape(number, 3)


def tensors(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the model takes for these rows."""
    return (x, backwards(x)) if PLAN["ragged"] else (x,)


def backwards(x: np.ndarray) -> np.ndarray:
    """The numbers of these rows, the last one first."""
    return np.arange(len(x))[::-1]


def wanted(x: np.ndarray) -> np.ndarray:
    """The answer that these rows must get."""
    return right(x)[backwards(x)] if PLAN["ragged"] else right(x)


def described(error: BaseException) -> dict[str, str]:
    return {"error": type(error).__name__, "text": str(error)}


def take(diary: Diary, step: int, guilty: bool, x: np.ndarray, request: object) -> None:
    """Wait for one answer and write down what it was."""
    begin = time.monotonic()
    try:
        if isinstance(request, Exception):
            raise request
        y = request.result(timeout=PLAN["timeout"])
        what = "right" if (y == wanted(x)).all() else "wrong"
        if what == "wrong" or not PLAN["seconds"]:
            diary.write(what, step=step, guilty=guilty, seconds=time.monotonic() - begin)
    except mpiserve.Error as error:
        seconds = time.monotonic() - begin
        diary.write("error", step=step, guilty=guilty, seconds=seconds, **described(error))


def submitted(service: mpiserve.Service, x: np.ndarray) -> object:
    """Submit, and keep an error for the time when the answer is due."""
    try:
        return service.submit(*tensors(x))
    except mpiserve.Error as error:
        return error


def last_step(step: int, begin: float) -> bool:
    """Tell whether the run is over; with `seconds` a fault comes now and then until it is."""
    if not PLAN["seconds"]:
        return step == PLAN["steps"]
    now = time.monotonic() - begin
    if now > PLAN["every"] * (1 + len(PLAN["at"])):
        PLAN["at"].append(step)
    return now > PLAN["seconds"]


def ask(diary: Diary, service: mpiserve.Service, rank: int, step: int) -> None:
    """Ask for two answers at once, and wait for both."""
    large = PLAN["grow"] if PLAN["grow"] and step >= PLAN["at"][0] else LARGE
    inputs = [rows(rank, step, SMALL), rows(rank, step, large)]
    mine = rank == PLAN["guilty"] and step in PLAN["at"]
    kinds = [False, False]
    if mine and PLAN["triggers"]:
        which = PLAN["at"].index(step)
        kinds[which % 2] = True
        inputs[which % 2][1, 0] = trigger(PLAN["triggers"][which % len(PLAN["triggers"])])
    requests = [submitted(service, x) for x in inputs]
    for guilty, x, request in zip(kinds, inputs, requests, strict=True):
        take(diary, step, guilty, x, request)


def act(diary: Diary, session: mpiserve.Session, name: str) -> None:
    """Do what the plan wants this rank to do to the others."""
    diary.write("act", text=name)
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name == "exit":
        os._exit(0)
    elif name == "raise":
        raise RuntimeError("the simulation says no")
    elif name == "silent":
        time.sleep(PLAN["silent"])
        diary.write("woke")
    elif name == "finalize":
        from mpi4py import MPI

        MPI.Finalize()
        diary.write("finalized")
        time.sleep(PLAN["silent"])
        diary.write("woke")
        os._exit(0)


def simulate(diary: Diary, session: mpiserve.Session) -> None:
    rank = session.comm.rank
    try:
        if PLAN["broken"] and rank == 0:
            session.service("broken")
            diary.write("found", text="broken")
    except mpiserve.Error as error:
        diary.write("error", step=-1, guilty=True, seconds=0, **described(error))
    service = session.service("twice")
    if PLAN["fallback"]:
        service.fallback(lambda x: right(x))
    diary.write("open")
    session.comm.Barrier()
    begin = time.monotonic()
    for step in count():
        if last_step(step, begin):
            break
        while PLAN["grow"] and step == PLAN["at"][0] and not Path("ready").exists():
            time.sleep(0.01)
        if PLAN["act"] and step in PLAN["at"]:
            if rank == PLAN["guilty"]:
                act(diary, session, PLAN["act"])
            elif PLAN["act"] == "raise":
                session.comm.Barrier()
        ask(diary, service, rank, step)
        if PLAN["lockstep"]:
            session.comm.Barrier()
        time.sleep(PLAN["pause"])


def main() -> None:
    try:
        session = mpiserve.open()
    except mpiserve.Error as error:
        Diary(int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"])).write(
            "refused", **described(error)
        )
        raise
    diary = Diary(session.comm.rank)
    diary.write("pid", text=str(os.getpid()))
    with session:
        simulate(diary, session)
        diary.write("closing")
        try:
            session.close()
        except mpiserve.Error as error:
            diary.write("unclosed", **described(error))
    diary.write("end")
    if getattr(session, "bereft", False):
        os._exit(0)  # MPI_Finalize may wait for the dead


if __name__ == "__main__":
    main()
