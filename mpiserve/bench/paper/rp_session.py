"""A session of RADICAL-Pilot with services, which measures on request.

    rp_session.py SERVICES FOLDER

It runs in the environment of RADICAL-Pilot, without mpiserve. A line of JSON to stdin asks for
clients, and one on stdout answers; the first line tells how the services started. It ends with
stdin.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # RADICAL-Pilot talks on stdout
# As activating the environment does: else pilots, which begin with a login shell, do not find it.
os.environ["VIRTUAL_ENV"] = sys.prefix
os.environ["PATH"] = f"{sys.prefix}/bin:{os.environ.get('PATH', os.defpath)}"

import radical.pilot as rp  # noqa: E402

HERE = Path(__file__).parent
ENVIRONMENT = "rp"  # the name under which it knows its own environment
MINUTES = 30
CORES = 24  # as many as there are tasks at a time; nodes of 8, which local.localhost makes up
LIMIT = 240.0  # seconds for the pilot, and for a task


def answer(**found: Any) -> None:
    """Write a line."""
    ANSWERS.write(json.dumps(found) + "\n")


def pilot_of(session: Any) -> tuple[Any, Any, float]:
    """Start a pilot; return it, the manager of its tasks, and the seconds."""
    begin = time.time()
    manager = rp.PilotManager(session=session)
    tasks = rp.TaskManager(session=session)
    wanted = {"resource": "local.localhost", "runtime": MINUTES, "cores": CORES}
    pilot = manager.submit_pilots(rp.PilotDescription(wanted))
    tasks.add_pilots(pilot)
    pilot.wait([rp.PMGR_ACTIVE, rp.FAILED, rp.DONE, rp.CANCELED], timeout=LIMIT)
    if pilot.state != rp.PMGR_ACTIVE:
        raise SystemExit(f"the pilot is {pilot.state}")
    return pilot, tasks, time.time() - begin


def start(tasks: Any, number: int) -> tuple[Any, dict[str, float]]:
    """Start a service; return its task and its bootstrap time by phase."""
    wanted = {
        "uid": f"noop{number}",
        "mode": rp.TASK_SERVICE,
        "executable": sys.executable,
        "arguments": [str(HERE / "rp_service.py")],
        "named_env": ENVIRONMENT,
        "info_pattern": "stdout:endpoint: (.*)",
        "startup_timeout": LIMIT,
    }
    begin = time.time()
    task = tasks.submit_tasks(rp.TaskDescription(wanted))
    found = task.wait_info(timeout=LIMIT)
    if not found:
        raise SystemExit(f"the service {task.uid} is {task.state}: {task.stderr}")
    end = time.time()
    launched, ready = (float(word) for word in found.split(",")[1:])
    return task, {"launch": launched - begin, "init": ready - launched, "publish": end - ready}


def measure(tasks: Any, services: list[Any], wanted: dict[str, Any], folder: Path) -> Any:
    """Run a task with clients of the first services; return what they measured."""
    names = [task.uid for task in services[: wanted.pop("services")]]
    file = folder / f"clients-{time.monotonic_ns()}.json"
    spec = json.dumps(wanted | {"services": names})
    description = {
        "executable": sys.executable,
        "arguments": [str(HERE / "rp_clients.py"), spec, str(file)],
        "named_env": ENVIRONMENT,
        "services": names,
    }
    task = tasks.submit_tasks(rp.TaskDescription(description))
    tasks.wait_tasks(uids=[task.uid], timeout=LIMIT)
    if not file.exists():
        raise SystemExit(f"the clients are {task.state}: {task.stderr}")
    return json.loads(file.read_text())


def main() -> None:
    """Start the services, and answer."""
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    session = rp.Session()
    try:
        _, tasks, seconds = pilot_of(session)
        answer(progress=f"its pilot was active after {seconds:.0f} s")
        services, phases = zip(*(start(tasks, number) for number in range(count)), strict=True)
        answer(pilot=seconds, bootstrap=phases)
        for line in sys.stdin:
            answer(measured=measure(tasks, list(services), json.loads(line), folder))
        tasks.cancel_tasks([task.uid for task in services])
    finally:
        session.close(download=False)


if __name__ == "__main__":
    main()
