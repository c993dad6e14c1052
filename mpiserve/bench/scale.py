"""Measure the cost of silent clients for the head: instructions per request, and memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mpiserve.bench import job
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress
from mpiserve.errors import Code, Error
from mpiserve.mpi import families

CLIENTS = (1, 64, 1024, 8192)


def measure(plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Run the harness for each number of clients, in this process's children."""
    progress.begin("scale", 2 * len(CLIENTS) - 1)
    rounds = 100 if plan.quick else 1000
    counter = shutil.which("valgrind")
    if counter is None:
        progress.say("scale_instructions is left out: there is no valgrind on the path")
    rows = []
    for clients in CLIENTS if counter else ():
        progress.step(f"instructions, {clients} clients")
        value = instructions(clients, rounds) / rounds
        rows.append(row("scale_instructions", clients, round(value, 1), "instructions/request"))
    alone = held(1)
    for clients in CLIENTS[1:]:
        progress.step(f"memory, {clients} clients")
        value = (held(clients) - alone) / (clients - 1)
        rows.append(row("scale_memory", clients, round(value, 1), "bytes/client"))
    return rows


def row(case: str, clients: int, value: float, unit: str) -> dict[str, Any]:
    """Make a row of the report; one client sends requests, and the census skips the others."""
    silent = {"clients": clients, "silent": "idle"}
    return {"case": case, **silent, "value": value, "unit": unit}


def harness() -> str:
    """Return the path of the program."""
    return str(families.prefix() / "bench/scale")


def held(clients: int) -> int:
    """Return the bytes that a head holds for the lanes of `clients` clients, without slabs."""
    return int(run([harness(), str(clients), "1"]).stdout)


def instructions(clients: int, rounds: int) -> int:
    """Count the instructions of `rounds` requests of one client."""
    with tempfile.TemporaryDirectory(prefix="mpiserve-") as folder:
        options = ["--toggle-collect=speak", f"--callgrind-out-file={folder}/callgrind"]
        command = ["valgrind", "--tool=callgrind", *options, harness()]
        done = run([*command, str(clients), str(rounds)])
    return collected(done.stderr)


def collected(text: str) -> int:
    """Read the count from the output of callgrind.

    Raises:
        Error: If there is none.
    """
    found = re.search(r"Collected\s*:\s*(\d+)", text)
    if not found:
        raise Error(Code.ESTATE, "callgrind counted nothing")
    return int(found.group(1))


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program that is not a rank of this job.

    Raises:
        Error: If it fails, with the last line that it wrote.
    """
    env = job.scrubbed(os.environ)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.splitlines() or [""]
        raise Error(Code.ESTATE, f"{Path(command[0]).name} failed: {said[-1]}")
    return done
