"""libmpiserve_world.so under Fortran: mpif.h, module mpi and module mpi_f08, unmodified."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coupling import SERVE, write
from jobs import ROOT

from mpiserve.tools import build_flags

MPIFORT = shutil.which("mpifort", path=f"{sys.prefix}/bin")
SOURCE = ROOT / "tests/legacy/heat.F90"
# pytest-mpi would skip a test of the name "mpi".
INTERFACES = {"mpif.h": [], "module mpi": ["-DMODULE"], "module mpi_f08": ["-DF08"]}
PRELOAD = ["env", f"LD_PRELOAD={build_flags.world()}"]


def build(folder: Path, interface: str, *flags: str) -> Path:
    program = folder / "heat"
    command = [MPIFORT, *INTERFACES[interface], "-J", folder, SOURCE, *flags, "-o", program]
    subprocess.run(command, check=True)
    return program


@pytest.mark.parametrize("interface", INTERFACES)
def test_an_unmodified_code_gives_the_same_answer_as_alone(mpiexec, tmp_path, interface):
    write(tmp_path)
    program = build(tmp_path, interface)
    alone = mpiexec(["-n", 3, program])
    assert alone.returncode == 0
    assert len(alone.stdout.splitlines()) == 13
    preloaded, serve = ["-n", 3, *PRELOAD, program], ["-n", 1, *SERVE, "c.toml"]
    # Either order with one interface, for the time that each job takes.
    first = interface == "module mpi"
    (tmp_path / "heat.out").unlink()
    done = mpiexec([*serve, ":", *preloaded] if first else [*preloaded, ":", *serve])
    assert done.returncode == 0
    assert done.stdout == alone.stdout


def test_a_code_that_asks_gets_the_session_that_is_there(mpiexec, tmp_path):
    write(tmp_path)
    flags = [*build_flags.fflags().split(), *build_flags.flibs().split()]
    program = build(tmp_path, "module mpi_f08", "-DASKS", *flags)
    done = mpiexec(["-n", 2, *PRELOAD, program, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    words = [line.split() for line in done.stdout.splitlines()]
    assert words[-2] == ["a", "second", "open:", "-4.000000000000E+00", "-2.000000000000E+00"]
    assert words[-1] == ["twice:", "3.600000000000E+01", "2.400000000000E+01"]


def exported(library: str) -> set[str]:
    command = ["nm", "-D", "--defined-only", library]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in text.splitlines()}


def test_each_name_in_fortran_of_a_function_with_a_wrapper_has_one(tmp_path):
    """Looked up in the libraries that a Fortran program of this MPI loads."""
    program = build(tmp_path, "module mpi_f08")
    loaded = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"=> (\S*/lib(?:mpi_\w+|mpichfort)\.so\S*)", loaded)
    assert libraries
    theirs = {name for path in libraries for name in exported(path)}
    ours = exported(build_flags.world())
    functions = {name.lower() for name in ours if re.match(r"MPIX?_[A-Z][a-z]", name)}
    kinds = r"(?:_cptr)?(?:_f08(?:ts)?)?(?:_large)?_{0,2}"
    spelt = {
        name for name in theirs if re.match(r"mpix?_[a-z_0-9]+$|MPIX?_[A-Z_0-9]+$", name)
    }  # but not those such as MPI_Send_f08, which no module calls
    base = {name: re.fullmatch(rf"(mpix?_\w+?){kinds}", name.lower())[1] for name in spelt}
    wanted = {name for name, function in base.items() if function in functions}
    assert len(wanted) > 500
    assert wanted <= ours
