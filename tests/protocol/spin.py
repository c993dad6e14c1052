"""Check a Promela model of this folder: every state that it can reach, or the way to an error."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MODELS = Path(__file__).resolve().parent
MEGABYTES = 3500
SECONDS = 170
# Every state is stored whole: no bitstate, no hash compaction.
COMPILE = ["cc", "-w", "-DSAFETY", f"-DMEMLIM={MEGABYTES}"]
MISSING = "spin is not installed: apt-get install spin"


class Outcome(NamedTuple):
    """What a search found. complete: no error, and no state was left out."""

    complete: bool
    error: str  # the first one
    states: int
    megabytes: float
    seconds: float
    text: str
    way: str  # to the error


def installed() -> bool:
    return shutil.which("spin") is not None


def run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return done.stdout + done.stderr


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def check(model: str, defines: Sequence[str], folder: Path, optimise: str = "-O2") -> Outcome:
    """Search all states of a model, in a folder for what is generated."""
    source = shutil.copy(MODELS / f"{model}.pml", folder)
    options = [f"-D{name}" for name in defines]
    made = run(["spin", *options, "-a", source], folder)
    assert (folder / "pan.c").exists(), made
    made = run([*COMPILE, optimise, "-o", "pan", "pan.c"], folder)
    assert (folder / "pan").exists(), made
    text = run(["./pan", "-m2000000", "-w24"], folder)
    errors = re.search(r"errors: (\d+)", text)
    whole = not re.search(r"not completed|max search depth too small|out of memory", text)
    failed = re.search(r"pan:\d+: (.*?) \(at depth", text)
    way = run(["spin", *options, "-t", "-p", "-g", source], folder) if failed else ""
    return Outcome(
        complete=errors is not None and errors[1] == "0" and whole,
        error=failed[1] if failed else "",
        states=int(number(r"([\d.e+]+) states, stored", text)),
        megabytes=number(r"([\d.]+)\s+total actual memory usage", text),
        seconds=number(r"elapsed time ([\d.]+)", text),
        text=text,
        way="\n".join(way.splitlines()[-120:]),
    )
