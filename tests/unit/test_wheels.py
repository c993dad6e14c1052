"""The audit of wheels for PyPI, tools/wheels.py, on made-up wheels with a real library."""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from pathlib import Path

import pytest
from jobs import ROOT

from mpiserve.tools import build_flags

spec = importlib.util.spec_from_file_location("wheels", ROOT / "tools/wheels.py")
wheels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wheels)

PACKAGE = ROOT / "mpiserve"
GOOD = "mpiserve-1.0-cp311-cp311-manylinux_2_28_x86_64.whl"
TEXTS = ("include/mpiserve.h", "lib/pkgconfig/mpiserve.pc")


def make_wheel(folder: Path, *more: str, name: str = GOOD, without: str = "") -> Path:
    """Write a wheel with what each family must have, as empty files, and more of them."""
    files = [f"mpiserve/{module}.x.so" for module in wheels.WITHOUT_MPI]
    for family in wheels.MPIS:
        inner = [*TEXTS, *(f"lib/{library}" for library in wheels.LIBRARIES)]
        inner += [f"{module}.x.so" for module in wheels.MODULES]
        files += [f"mpiserve/families/{family}/{file}" for file in inner]
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file in {*files, *more} - {without}:
            archive.writestr(file, "")
    return folder / name


def test_the_audit_knows_all_modules():
    modules = {str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.pyx")}
    assert modules == {*wheels.MODULES, *wheels.WITHOUT_MPI}


def test_a_whole_wheel_passes(tmp_path):
    assert list(wheels.problems(make_wheel(tmp_path))) == []


def test_a_wheel_that_auditwheel_has_not_seen_is_refused(tmp_path):
    wheel = make_wheel(tmp_path, name="mpiserve-1.0-cp311-cp311-linux_x86_64.whl")
    assert ["manylinux" in text for text in wheels.problems(wheel)] == [True]


@pytest.mark.parametrize(
    "file",
    [
        "mpiserve/families/mpich/lib/libmpiserve.so",
        "mpiserve/families/mpiabi/lib/libmpiserve_world.so",
        "mpiserve/families/openmpi/_lib/core.x.so",
        "mpiserve/families/openmpi/lib/pkgconfig/mpiserve.pc",
        "mpiserve/_lib/handover.x.so",
    ],
)
def test_what_is_missing_is_named(tmp_path, file):
    (text,) = wheels.problems(make_wheel(tmp_path, without=file))
    assert text.endswith(file.removesuffix(".x.so"))


@pytest.mark.parametrize("name", ["libmpi-1a2b.so.40", "libmpich.so.12", "libgfortran.so.5"])
def test_no_library_of_others_may_come_along(tmp_path, name):
    (text,) = wheels.problems(make_wheel(tmp_path, f"mpiserve.libs/{name}"))
    assert f"mpiserve.libs/{name} must come from the user" in text


@pytest.mark.skipif(not shutil.which("readelf"), reason="there is no readelf")
def test_paths_of_the_machine_that_built_it_and_other_libraries_are_found(tmp_path):
    wheel = make_wheel(tmp_path, without="mpiserve/families/mpich/lib/libmpiserve_world.so")
    with zipfile.ZipFile(wheel, "a") as archive:  # this one is linked to an MPI, by its path
        archive.write(build_flags.world(), "mpiserve/families/mpich/lib/libmpiserve_world.so")
        archive.write(build_flags.world(), "mpiserve/_lib/other.so")
    texts = list(wheels.problems(wheel))
    assert any("mpiserve/_lib/other.so needs libmpi" in text for text in texts)
    assert any("libmpiserve_world.so looks for libraries in /" in text for text in texts)
