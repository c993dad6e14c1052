"""Which MPI a build takes, and the name of its wheel: what setup.py finds, without the build."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ROOT

# setup.py as in an environment that has no MPI of its own, such as that of an isolated build.
READ = """\
import runpy, sys
import Cython.Build, setuptools
setuptools.setup = lambda **given: None
Cython.Build.cythonize = lambda *modules, **given: []
sys.prefix = sys.argv[1]
names = runpy.run_path("setup.py")
wrappers = names["find_wrappers"]()
for family in sorted(wrappers):
    print(family, wrappers[family], names["which_mpi"](wrappers[family]))
"""


@pytest.fixture
def found(tmp_path):
    """Return how setup.py finds the wrapper, with environments active and others of no MPI."""

    def run(prefix: Path, **env: str) -> list[str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("MPICC", "VIRTUAL_ENV")}
        system = make_mpicc(tmp_path / "system", '#define MPICH_VERSION "4.0.2"')
        kept["PATH"] = f"{system}:{kept['PATH']}"
        command = [sys.executable, "-c", READ, str(prefix)]
        done = subprocess.run(command, cwd=ROOT, env=kept | env, capture_output=True, text=True)
        return done.stdout.split() if done.returncode == 0 else done.stderr.splitlines()

    return run


def make_mpicc(prefix: Path, *defines: str) -> Path:
    """Write a wrapper that finds an mpi.h of its own; return its folder."""
    folder = prefix / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    (prefix / "mpi.h").write_text("\n".join(defines) + "\n")
    (folder / "mpicc").write_text(f'#!/bin/sh\nexec cc -I{prefix} "$@"\n')
    (folder / "mpicc").chmod(0o755)
    return folder


@pytest.mark.takes_long
def test_an_isolated_build_takes_the_wrapper_of_the_active_environment(found, tmp_path):
    active = make_mpicc(tmp_path / "active", "#define OPEN_MPI 1", "#define OMPI_MAJOR_VERSION 5")
    system = tmp_path / "system/bin/mpicc"
    env = {"VIRTUAL_ENV": str(tmp_path / "active")}
    assert found(tmp_path / "none", **env) == [f"{active}/mpicc", "openmpi5"]
    assert found(tmp_path / "none") == [str(system), "mpich4"]
    assert found(tmp_path / "none", **env, MPICC=str(system)) == [str(system), "mpich4"]


def test_the_environment_that_builds_comes_first(found, tmp_path):
    own = make_mpicc(tmp_path / "own", "#define I_MPI_VERSION 2021", "#define MPICH_VERSION 3")
    make_mpicc(tmp_path / "active", "#define OPEN_MPI 1")
    env = {"VIRTUAL_ENV": str(tmp_path / "active")}
    assert found(tmp_path / "own", **env) == [f"{own}/mpicc", "impi2021"]


def test_two_wrappers_are_for_a_build_with_both_families(found, tmp_path):
    ours = (
        f"{make_mpicc(tmp_path / 'a', '#define OPEN_MPI 1', '#define OMPI_MAJOR_VERSION 5')}/mpicc"
    )
    impi = f"{make_mpicc(tmp_path / 'b', '#define I_MPI_VERSION 2021')}/mpicc"
    both = found(tmp_path / "none", MPICC=f"{impi}:{ours}")
    assert both == ["mpich", impi, "impi2021", "openmpi", ours, "openmpi5"]


def test_the_binary_interface_of_mpi_5_is_a_family_beside_both(found, tmp_path):
    defined = "#define OPEN_MPI 1", "#define OMPI_MAJOR_VERSION 5"
    ours = f"{make_mpicc(tmp_path / 'a', *defined)}/mpicc"
    abi = f"{make_mpicc(tmp_path / 'b', '#define MPI_ABI_VERSION 1')}/mpicc"
    mpich = ["#define MPICH_VERSION 5", "#define MPI_ABI_VERSION 1"]  # MPICH's own knows of it
    own = f"{make_mpicc(tmp_path / 'c', *mpich)}/mpicc"
    names = found(tmp_path / "none", MPICC=f"{ours}:{abi}:{own}")
    assert names[:6] == ["mpiabi", abi, "mpiabi1", "mpich", own, "mpich5"]
    assert names[6] == "openmpi"


def test_two_wrappers_of_one_family_are_refused_by_name(found, tmp_path):
    mpich = f"{make_mpicc(tmp_path / 'a', '#define MPICH_VERSION 4')}/mpicc"
    impi = f"{make_mpicc(tmp_path / 'b', '#define I_MPI_VERSION 2021')}/mpicc"
    (text,) = found(tmp_path / "none", MPICC=f"{impi}:{mpich}")
    assert text.startswith("MPICC names impi2021, mpich4: several wrappers must be")


def test_an_unknown_mpi_has_a_name(found, tmp_path):
    make_mpicc(tmp_path / "own")
    assert found(tmp_path / "own")[1] == "mpi"
