"""Follow a tutorial as a reader does: write its files, run its commands, compare what it shows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mpijob
from jobs import ROOT

# A file has a title; a block of sh is commands; one of text is what the last command prints.
BLOCK = re.compile(r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
Step = tuple[str, str, str]  # "file", "command" or "output", a file's name, and the text


def page(name: str) -> Iterator[Step]:
    """Yield the steps of a tutorial."""
    return steps((ROOT / f"docs/tutorial/{name}.md").read_text())


def section(document: str, heading: str) -> Iterator[Step]:
    """Yield the steps of a section of a document."""
    _, found, text = (ROOT / document).read_text().partition(f"\n## {heading}\n")
    assert found, f"{document} has no section {heading}"
    return steps(text.partition("\n## ")[0])


def steps(text: str) -> Iterator[Step]:
    """Yield the steps of a text."""
    for language, title, body in BLOCK.findall(text):
        assert title or language in ("sh", "text"), f"a file without a title: {body}"
        if title:
            assert f"`{title}`:\n\n```" in text, f"{title}: a forge shows no titles of blocks"
            yield "file", title, body
        elif language == "sh":
            yield from (("command", "", line) for line in body.splitlines())
        else:
            yield "output", "", body


def follow(taken: Iterable[Step], mpiexec: Callable[..., Any], folder: Path) -> int:
    """Follow steps in a folder; return how many jobs they have started."""
    printed, jobs = "", 0
    for kind, file, text in taken:
        if kind == "file":
            (folder / file).write_text(text)
        elif kind == "output":
            assert sorted(printed.splitlines()) == sorted(text.splitlines())
        elif text.startswith("mpiexec "):
            words = [sys.executable if word == "python" else word for word in text.split()[1:]]
            result = mpiexec(words, timeout=150, cwd=folder)
            assert result.returncode == 0
            printed, jobs = result.stdout, jobs + 1
        else:
            printed = alone(text, folder)
    return jobs


def alone(command: str, folder: Path) -> str:
    """Run a command that starts no job, with this environment's python and compilers."""
    env = mpijob.settings() | {"PYTHONSAFEPATH": ""}  # a script finds modules beside it
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = mpijob.run(["sh", "-e", "-c", command], timeout=150, env=env, cwd=folder)
    print("$", command, f"\n[exit {done.returncode}]\n{done.stdout}{done.stderr}")
    assert done.returncode == 0
    return done.stdout
