"""Clients of services of RADICAL-Pilot, a process each: a task, which starts them.

    rp_clients.py SPEC FILE

It runs in the environment of RADICAL-Pilot, without mpiserve. SPEC is a JSON object: services (the
names of their tasks), clients, warm and seconds. FILE gets what they measured.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import radical.utils

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH leaves it out

from loop import closed_loop, merged  # noqa: E402

LIMIT = 60.0  # seconds for all clients to connect


def address(service: str) -> str:
    """Return where a service is: RADICAL-Pilot tells tasks that name it."""
    return os.environ[f"RP_INFO_{service.upper()}"].split(",")[0]


def ask(number: int, spec: dict[str, Any], barrier: Any, results: Any) -> None:
    """Be a client."""
    services = spec["services"]
    client = radical.utils.zmq.Client(url=address(services[number % len(services)]))

    def call() -> Any:
        return client.request("noop")

    closed_loop(call, spec["warm"])
    barrier.wait(LIMIT)
    results.put(closed_loop(call, spec["seconds"]))
    results.close()
    results.join_thread()
    os._exit(0)  # what RADICAL starts at exit is the parent's


def main() -> None:
    """Run the clients, and write their sum."""
    spec = json.loads(sys.argv[1])
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(spec["clients"]), context.Queue()
    for number in range(spec["clients"]):
        context.Process(target=ask, args=(number, spec, barrier, results), daemon=True).start()
    loops = [results.get(timeout=LIMIT + 2 * spec["seconds"]) for _ in range(spec["clients"])]
    new = Path(sys.argv[2] + ".new")
    new.write_text(json.dumps(merged(loops)))
    new.rename(sys.argv[2])


if __name__ == "__main__":
    main()
