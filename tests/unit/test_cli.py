import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpiserve import __version__
from mpiserve.cli import app

CONFIG = """
[service.chemistry]
model = "chemistry:build"
replicas = 2
inputs  = [{name = "state", dtype = "float32", shape = [-1, 3]}]
outputs = [{name = "rate",  dtype = "float32", shape = [-1, 3]}]
"""


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coupling.toml").write_text(CONFIG)
    (tmp_path / "chemistry.py").write_text("def build():\n    pass\n")
    return lambda *args: CliRunner().invoke(app, args)


def test_check_lists_the_services(invoke):
    result = invoke("check", "coupling.toml")
    assert result.exit_code == 0
    assert "chemistry:build" in result.output


def test_plan_shows_who_would_do_what(invoke):
    result = invoke("plan", "coupling.toml", "-n", "6", "--ranks-per-node", "3")
    assert result.exit_code == 0
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in result.output.splitlines()
        if "chemistry" in line
    ]
    assert cells == [
        ["4", "1", "chemistry, replica 0", "0,2", "rma 2"],
        ["5", "1", "chemistry, replica 1", "1,3", "shared 1, rma 1"],
    ]


def test_plan_says_in_one_line_what_is_wrong(invoke):
    result = invoke("plan", "coupling.toml", "-n", "2")
    assert result.exit_code == 2
    assert result.stderr == (
        "mpiserve: coupling.toml: service.chemistry.replicas: 2 replicas need 2 inference ranks, "
        "the world of 2 ranks leaves 1 beside a simulation rank\n"
    )


def test_jobscript_prints_a_script(invoke):
    args = ("--site", "slurm", "-n", "4", "--ranks-per-node", "2", "coupling.toml", "./sim", "-x")
    result = invoke("jobscript", *args)
    assert result.exit_code == 0
    assert "0-1 ./sim -x $*" in result.output
    assert invoke("jobscript", "--site", "sge", *args[2:]).exit_code == 2


def test_info_names_versions_and_libraries(invoke):
    result = invoke("info")
    assert result.exit_code == 0
    for text in (__version__, "built with", "MPI library", "thread level", "torch", "deepspeed"):
        assert text in result.output
    assert "not installed" not in result.output


@pytest.mark.parametrize("args", [(), ("run",), ("run", "coupling.toml"), ("sserve", "x")])
def test_wrong_usage_has_status_2(invoke, args):
    assert invoke(*args).exit_code == 2


def test_importing_mpiserve_starts_nothing():
    code = (
        "import mpiserve, sys, mpi4py;"
        "print(*sorted({'torch', 'mpi4py.MPI', 'pydantic', 'numpy'} & set(sys.modules)),"
        "mpi4py.rc.thread_level)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "serialized\n"


SCRIPT = Path(sys.prefix, "bin/mpiserve")  # as pip has made it

# What a shell does behind a tab, with the last of the words unfinished.
TAB = """\
eval "$(_MPISERVE_COMPLETE=source_bash mpiserve)"
COMP_WORDS=(mpiserve "$@") COMP_CWORD=$#
$(complete -p mpiserve | sed 's/.* -F \\([^ ]*\\) .*/\\1/') mpiserve
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "mpiserve"]])
def test_both_names_of_the_program_print_the_version(command):
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"mpiserve {__version__}\n")
    done = subprocess.run([*command, "chekc"], capture_output=True, text=True)
    name = "mpiserve" if command == [SCRIPT] else "python -m mpiserve"
    assert done.returncode == 2 and f"Usage: {name} [OPTIONS]" in done.stderr


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ser"], ["serve"]),
        (["check", "--l"], ["--load"]),
        (["run", "c"], ["cases/", "coupling.toml"]),
        (["run", "cases/"], ["cases/other.toml"]),
        (["run", "coupling.toml", "s"], ["sim.py"]),
    ],
)
def test_bash_completes_commands_options_and_files(tmp_path, words, completed):
    (tmp_path / "cases").mkdir()
    for name in ("coupling.toml", "cases/other.toml", "cases/notes.md", "sim.py", "sim.toml"):
        (tmp_path / name).touch()
    path = f"{SCRIPT.parent}:{os.environ['PATH']}"
    command = ["bash", "--norc", "-c", TAB, "bash", *words]
    env = os.environ | {"PATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == completed, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_their_script(shell):
    env = os.environ | {"_MPISERVE_COMPLETE": f"source_{shell}"}
    done = subprocess.run([SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and f"_MPISERVE_COMPLETE=complete_{shell}" in done.stdout
