"""Start a pilot, and run the three applications in it: `python pilot.py`."""

import json
import os
import sys
from pathlib import Path

import radical.pilot as rp

from mpiserve import radical

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
# Of the environment with mpiserve. Tasks begin in a folder of their own.
PYTHON = os.path.abspath(os.environ.get("MPISERVE_PYTHON", sys.executable))
MPI = ("OMPI_", "PRTE_", "MPIR_")  # settings of the MPI, which the jobs get
CORES, MINUTES, LIMIT = 8, 20, 300  # LIMIT: seconds for the pilot, and for the tasks of one step
MEMBERS, PARTS = 3, 6
LAST = [rp.DONE, rp.FAILED, rp.CANCELED]


def script(name, *arguments, services=()):
    """Describe a task of one process, which may be a client of services."""
    words = [str(HERE / name), *map(str, arguments)]
    return {"executable": PYTHON, "arguments": words, "services": list(services)}


def start(session):
    """Start a pilot on this machine; return the manager of its tasks."""
    wanted = {"resource": "local.localhost", "runtime": MINUTES, "cores": CORES}
    pilot = rp.PilotManager(session=session).submit_pilots(rp.PilotDescription(wanted))
    tasks = rp.TaskManager(session=session)
    tasks.add_pilots(pilot)
    pilot.wait([rp.PMGR_ACTIVE, *LAST], timeout=LIMIT)
    if pilot.state != rp.PMGR_ACTIVE:
        raise SystemExit(f"the pilot is {pilot.state}")
    return tasks


def submit(tasks, *described):
    """Submit tasks."""
    return tasks.submit_tasks([rp.TaskDescription(one) for one in described])


def run(tasks, *described):
    """Run tasks side by side, and wait for all of them."""
    submitted = submit(tasks, *described)
    tasks.wait_tasks(uids=[task.uid for task in submitted], timeout=LIMIT)
    for task in submitted:
        if task.state != rp.DONE:
            raise SystemExit(f"{task.uid} is {task.state}:\n{task.stderr}")


def applications(tasks):
    """Train the models, start the service and the coupled job, and run the clients."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(MPI)}
    common = {"python": PYTHON, "environment": settings}
    run(tasks, *(script("train.py", number) for number in range(MEMBERS)))
    described = radical.service_task(HERE / "services.toml", 3, uid="models", **common)
    (service,) = submit(tasks, described)
    try:
        print(f"the service is ready: {radical.wait_ready(service, LIMIT)}", flush=True)
        cells = radical.coupled_task(HERE / "cells.toml", [HERE / "cells.py"], 3, **common)
        ensemble = script("uncertainty.py", services=["models"])
        parts = [script("signatures.py", n, PARTS, services=["models"]) for n in range(PARTS)]
        run(tasks, cells, ensemble, *parts)
    finally:
        tasks.cancel_tasks(service.uid)


def report():
    """Print what the tasks have written."""
    parts = [json.loads(file.read_text()) for file in sorted(OUT.glob("signatures-*.json"))]
    result = {
        "cells": json.loads((OUT / "cells.json").read_text()),
        "signatures": {name: sum(part[name] for part in parts) for name in parts[0]},
        "uncertainty": json.loads((OUT / "uncertainty.json").read_text()),
    }
    (OUT / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    session = rp.Session()
    try:
        applications(start(session))
    finally:
        session.close(download=False)
    report()
