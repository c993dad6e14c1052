"""In a pilot: cancel jobs, kill what runs them, and say what is left. test_pilot.py runs it.

    pilot_session.py FOLDER

FOLDER has example 12, and c.toml and sim.py, a job that never ends. It runs in the environment of
RADICAL-Pilot, in a process namespace of its own, and prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

FOLDER = Path(sys.argv[1])
sys.path.insert(0, str(FOLDER))

import pilot  # noqa: E402
import radical.pilot as rp  # noqa: E402

from mpiserve import Error, radical  # noqa: E402
from mpiserve.launch import guard  # noqa: E402
from mpiserve.mpi.launcher import ancestors  # noqa: E402

PREFIX = str(Path(pilot.PYTHON).parent) + "/"
SECONDS = 60
SETTINGS = {name: value for name, value in os.environ.items() if name.startswith(pilot.MPI)}
COMMON = {"python": pilot.PYTHON, "environment": SETTINGS, "cores": 2}


def of_jobs():
    """The processes of the environment with mpiserve: process id and command."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_text().replace("\0", " ")
            if PREFIX in command:
                found[int(folder.name)] = command
    return found


def left():
    """Wait until no process of a job is there; return those that are."""
    end = time.monotonic() + SECONDS
    while of_jobs() and time.monotonic() < end:
        time.sleep(0.1)
    return list(of_jobs().values())


def begin(tasks, number):
    """Start a service and a coupled job, and wait until both run; return them."""
    (FOLDER / "begun").unlink(missing_ok=True)
    described = radical.service_task(FOLDER / "c.toml", 3, uid=f"models{number}", **COMMON)
    (service,) = pilot.submit(tasks, described)
    radical.wait_ready(service, pilot.LIMIT)
    described = radical.coupled_task(FOLDER / "c.toml", [FOLDER / "sim.py"], 3, **COMMON)
    (job,) = pilot.submit(tasks, described)
    end = time.monotonic() + pilot.LIMIT
    while not (FOLDER / "begun").exists():
        assert time.monotonic() < end and job.state not in pilot.LAST, (job.state, job.stderr)
        time.sleep(0.1)
    return service, job


def executors():
    """Those processes of the pilot that have started tasks."""
    jobs, found = of_jobs(), set()
    for pid, command in jobs.items():
        above = [each for each, _ in ancestors(pid)]
        if guard.__name__ in command and jobs.keys().isdisjoint(above):
            found.add(next(each for each in above if os.getsid(each) != os.getsid(pid)))
    return found


def failure(tasks):
    """Start a service that fails; return what is said of it."""
    described = radical.service_task(
        FOLDER / "c.toml", 3, uid="wrong", flags=["--no-such-flag"], **COMMON
    )
    (service,) = pilot.submit(tasks, described)
    try:
        return radical.wait_ready(service, pilot.LIMIT)
    except Error as error:
        return str(error)


def overdue(tasks):
    """Run a job for longer than it may; return its state, and what is left."""
    script = [FOLDER / "sim.py"]
    described = radical.coupled_task(FOLDER / "c.toml", script, 3, seconds=5, **COMMON)
    (job,) = pilot.submit(tasks, described)
    tasks.wait_tasks(uids=[job.uid], timeout=pilot.LIMIT)
    return [job.state, left()]


def main(tasks):
    """Return what happened."""
    said, late = failure(tasks), overdue(tasks)
    service, job = begin(tasks, 1)
    ran = len(of_jobs())
    tasks.cancel_tasks([service.uid, job.uid])
    after_cancel = left()
    tasks.wait_tasks(uids=[service.uid, job.uid], timeout=SECONDS)
    states = [service.state, job.state]
    begin(tasks, 2)
    for pid in executors():
        os.kill(pid, signal.SIGKILL)
    return {
        "failure": said,
        "after its time": late,
        "ran": ran,
        "after cancel": after_cancel,
        "states": states,
        "after the end of the executor": left(),
    }


if __name__ == "__main__":
    status = 1
    try:
        print(json.dumps(main(pilot.start(rp.Session()))), flush=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)  # the end of the session would wait for the executor
