"""libmpiserve_world.so: a code that says MPI_COMM_WORLD, unmodified, beside inference ranks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coupling import CONFIG, SERVE, first_is_quick, write
from jobs import ROOT, Target

from mpiserve.tools import build_flags

MPICC = Target("", Path(sys.prefix)).mpicc
SOURCE = ROOT / "tests/legacy/heat.c"
UNTOUCHED = {"MPI_Abort", "MPI_Comm_c2f", "MPI_Comm_toint"}  # each has its reason in wrappers.py

# What a program that asks is told, in the order of its calls.
TOLD = [
    "inference: -1 libmpiserve_world.so is preloaded, so that this is a simulation rank",
    "self: -1 libmpiserve_world.so is preloaded: the world of a session is MPI_COMM_WORLD",
    "null: -1 world is MPI_COMM_NULL",
    "second: -2 libmpiserve_world.so is preloaded: a program opens one session",
    "twice: 42 14",
]
TOLD_LATER = [
    "closed: -2 the session is not open: it was closed, or never opened",
    "reopen: -2 libmpiserve_world.so is preloaded: a program opens one session",
]


@pytest.fixture
def legacy(mpiexec, tmp_path):
    """Compile heat.c; give what runs it, alone or beside one inference rank."""
    write(tmp_path)

    def compiled(*defines):
        program = tmp_path / "-".join(["heat", *defines])
        flags = build_flags.cflags().split() + build_flags.libs().split() if defines else []
        command = [MPICC, "-Wall", "-Wextra", *(f"-D{name}" for name in defines)]
        subprocess.run([*command, SOURCE, *flags, "-o", program], check=True)
        return program

    def run(program, beside="", ranks=3, transport="auto"):
        mine = ["-n", ranks, program]
        preloaded = ["-n", ranks, "env", f"LD_PRELOAD={build_flags.world()}", program]
        serve = ["-n", 1, *SERVE, "c.toml"]
        parts = {
            "": mine,
            "inference last": [*preloaded, ":", *serve],
            "inference first": [*serve, ":", *preloaded],
        }
        (tmp_path / "heat.out").unlink(missing_ok=True)
        return mpiexec(parts[beside], env={"MPISERVE_TRANSPORT": transport})

    run.compiled = compiled
    return run


def test_an_unmodified_code_gives_the_same_answer_as_alone(legacy):
    program = legacy.compiled()
    alone = legacy(program)
    assert alone.returncode == 0
    assert len(alone.stdout.splitlines()) == 20
    for order in ("inference last", "inference first"):
        done = legacy(program, order)
        assert done.returncode == 0
        assert done.stdout == alone.stdout
        assert "0 requests, 0 failed" in done.stderr


def test_one_simulation_rank_is_a_world(legacy):
    program = legacy.compiled()
    assert legacy(program, "inference last", ranks=1).stdout == legacy(program, ranks=1).stdout


@pytest.mark.parametrize("transport", first_is_quick(["shared", "rma"]))
def test_a_code_that_asks_gets_the_session_that_is_there(legacy, transport):
    done = legacy(legacy.compiled("ASKS"), "inference last", transport=transport)
    assert done.returncode == 0
    assert done.stdout.splitlines()[: len(TOLD)] == TOLD
    assert len(done.stdout.splitlines()) == len(TOLD) + 20
    assert "3 requests, 0 failed" in done.stderr


def test_a_code_may_close_the_session_and_go_on(legacy):
    done = legacy(legacy.compiled("ASKS", "CLOSES"), "inference first")
    assert done.returncode == 0
    told = [*TOLD, *TOLD_LATER]
    assert done.stdout.splitlines()[: len(told)] == told
    assert len(done.stdout.splitlines()) == len(told) + 20


def test_a_code_that_aborts_ends_the_job(legacy):
    done = legacy(legacy.compiled("ABORTS"), "inference last")
    assert done.returncode not in (0, 124)


def test_an_open_that_fails_ends_the_code_with_the_reason(legacy, tmp_path):
    write(tmp_path, config=CONFIG + "max_delay = 100\n")
    done = legacy(legacy.compiled(), "inference last")
    assert done.returncode not in (0, 124)
    assert not done.stdout
    said = [line for line in done.stderr.splitlines() if "unknown key" in line]
    ours = [
        line
        for line in said
        if line.startswith("libmpiserve_world: MPI_COMM_WORLD cannot be replaced: rank 3: ")
    ]
    assert len(ours) == 1
    assert len(said) == 2  # the other is serve's own


def test_without_inference_ranks_the_reason_is_printed(legacy, mpiexec):
    program = legacy.compiled()
    done = mpiexec(["-n", 2, "env", f"LD_PRELOAD={build_flags.world()}", program])
    assert done.returncode not in (0, 124)
    assert done.stderr.count("all 2 ranks of the world are simulation ranks") == 1


def exported(library):
    command = ["nm", "-D", "--defined-only", library]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in text.splitlines()}


def test_each_function_that_takes_a_communicator_has_a_wrapper(tmp_path):
    """Found in mpi.h by another way than the generator's."""
    source = tmp_path / "header.c"
    source.write_text("#include <mpi.h>\n")
    command = [MPICC, "-E", "-P", source]
    header = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    header = re.sub(r"typedef[^;]*;", "", header)
    declared = re.findall(r"\b(MPIX?_\w+)\s*\(([^;]*?)\)\s*(?:;|__attribute__)", header)
    takes = {name for name, args in declared if re.search(r"\bMPI_Comm\b(?!\s*\*)", args)}
    assert len(takes) > 100
    assert {"MPI_Send", "MPI_Comm_split", "MPI_Win_allocate_shared", "MPI_File_open"} <= takes
    names = exported(build_flags.world())
    assert takes - names == UNTOUCHED & takes
    assert {"MPI_Init", "MPI_Init_thread"} <= names
    assert not UNTOUCHED & names


def test_the_library_exports_nothing_but_wrappers():
    names = {name.removeprefix("mpiserve_").lower() for name in exported(build_flags.world())}
    ours = {"open", "open_f", "open_failed", "open_failed_f"}
    assert ours <= names
    assert {name for name in names if not name.startswith(("mpi_", "mpix_"))} == ours


def test_programs_without_mpi_run_with_it():
    done = subprocess.run(
        [shutil.which("env"), f"LD_PRELOAD={build_flags.world()}", "true"], capture_output=True
    )
    assert done.returncode == 0 and not done.stderr
