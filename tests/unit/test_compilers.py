"""No compiler of this machine warns of the library: of tests/compilers.py what takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys

import compilers
import pytest
from compilers import found, library_command
from jobs import ROOT

# The newest of each family; the others see the same files with make test-compilers.
NEWEST = {one.family: one for one in reversed(found())}
EVERY = [
    pytest.param(one, id=one.name, marks=[] if one in NEWEST.values() else pytest.mark.takes_long)
    for one in found()
]


def run(*words: str, path: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests/compilers.py"), *words]
    # A script finds modules beside it, which the tests' own setting (mpijob) would hinder.
    env = os.environ | {"PATH": path, "PYTHONSAFEPATH": ""}
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("compiler", EVERY)
def test_the_library_has_no_warnings(compiler):
    done = subprocess.run(library_command(compiler), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[:4000]


def test_the_compilers_are_those_on_path_without_repetition(tmp_path, monkeypatch):
    for name in ("gcc-9", "gcc-12", "clang-14", "clang-format", "aarch64-linux-gnu-gcc"):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "gcc").symlink_to("gcc-12")
    (tmp_path / "clang").write_text("another one")
    (tmp_path / "clang").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{tmp_path}/none:{tmp_path}")
    found.cache_clear()
    try:
        names = [one.name for one in found()]
        some = [one.name for one in compilers.chosen(["12", "clang-"])]
    finally:
        found.cache_clear()
    assert names == ["gcc-12", "gcc-9", "clang-14", "clang"]
    assert some == ["gcc-12", "clang-14"]


def test_a_word_that_no_compiler_has_is_an_error(tmp_path):
    done = run("gcc", "icx", path=os.environ["PATH"])
    assert done.returncode == 2
    assert "no compiler on PATH has 'icx' in its name; there are: " in done.stderr
    assert "gcc" in done.stderr.partition("there are: ")[2]
    assert run(path=str(tmp_path)).stderr == "no compiler on PATH: apt-get install gcc\n"
