"""The README's way from pip install to a model of one's own, as a newcomer takes it: the wheel in
dist, an environment of its own, no compiler, and none of the settings of the other tests.

`make test-wheels TESTS="-k newcomer -rP"` prints how long each command takes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import bare
import mpijob
import pytest
import tutorial
from jobs import ROOT

pytestmark = [pytest.mark.timeout(1200), pytest.mark.takes_long]

SECTION = ("README.md", "From pip install to your own model")
# What a shell of a developer or this test has, and that of a newcomer has not.
NOT_THERE = re.compile(r"PYTHON|PYENV|VIRTUAL_ENV|CONDA|MPI|OMPI|PRTE|PMI|OMP_|LD_|(CC|CXX)$")
MARK = "-- at second"


def environment(wheel: Path, folder: Path) -> dict[str, str]:
    """Return settings under which python3 is that of the wheel, and there is no compiler."""
    folder.mkdir()
    path = bare.without_compilers(folder)
    ask = [bare.interpreter(wheel), "-c", "import sys; print(sys.executable)"]
    real = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    python = folder / "python3"
    python.unlink(missing_ok=True)  # else the system's would be written to
    python.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    python.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not NOT_THERE.match(key)}
    pip = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_NO_CACHE_DIR": "1"}
    return kept | pip | {"PATH": path}


def script(commands: list[str]) -> str:
    """Return a script that prints the time before each command, and in the end."""
    now = f'printf "\\n{MARK} %s\\n" "$(date +%s)"'
    return "\n".join([line for command in commands for line in (now, command)] + [now])


def test_a_newcomer_gets_an_answer_of_an_own_model(tmp_path):
    mine = f"-cp{sys.version_info.major}{sys.version_info.minor}-"
    wheel = next((wheel for wheel in bare.WHEELS if mine in wheel.name), None)
    assert wheel, f"no wheel for this Python in dist: make wheels PYTHONS={sys.executable}"
    steps = list(tutorial.section(*SECTION))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    for kind, name, text in steps:
        if kind == "file":
            (folder / name).write_text(text)
    commands = [text for kind, _, text in steps if kind == "command"]
    (shown,) = [text for kind, _, text in steps if kind == "output"]

    env = environment(wheel, tmp_path / "bin")
    command = ["sh", "-e", "-c", script(commands)]
    done = mpijob.run(command, timeout=1200, env=env, cwd=folder)

    print(done.stdout, done.stderr)
    assert done.returncode == 0
    _, *parts = done.stdout.split(f"\n{MARK} ")
    times = [int(part.partition("\n")[0]) for part in parts]
    for text, begin, end in zip(commands, times, times[1:], strict=False):
        print(f"{end - begin:4} s  {text}")
    print(f"{times[-1] - times[0]:4} s  in all")
    printed = parts[-2].partition("\n")[2]
    assert sorted(printed.splitlines()) == sorted(shown.splitlines())
