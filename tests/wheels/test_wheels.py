"""Each wheel in dist/, in bare environments without a compiler: `make test-wheels`.

The environments have what a wheel requires but torch and deepspeed, which take gigabytes; one test
reads that it requires these too. Only the tests of C and Fortran use a compiler.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bare
import pytest
from bare import WHEELS, Bare
from coupling import right, write
from jobs import ROOT

pytestmark = [pytest.mark.timeout(300), pytest.mark.takes_long]

# What the library says of its build.
BUILT_WITH = {"openmpi": "Open MPI 5.", "mpich": "MPICH 5.", "mpiabi": "MPI ABI 1."}

ASKS = """\
#include <mpiserve.h>
#include <stdio.h>

int main(int argc, char **argv) {
  mpiserve_session *session;
  mpiserve_service *service;
  float x[3] = {1, 2, 3}, y[3];
  mpiserve_tensor in = {"x", x, MPISERVE_FLOAT32, 2, {1, 3}};
  mpiserve_tensor out = {"y", y, MPISERVE_FLOAT32, 2, {1, 3}};
  MPI_Init(&argc, &argv);
  if (mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session) ||
      mpiserve_service_find(session, "twice", &service) ||
      mpiserve_infer(service, 1, &in, 1, &out, MPISERVE_FOREVER, NULL)) {
    fprintf(stderr, "%s\\n", mpiserve_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  printf("%g %g %g\\n", y[0], y[1], y[2]);
  mpiserve_close(session);
  return MPI_Finalize();
}
"""

# A code that says MPI_COMM_WORLD and knows nothing of mpiserve.
OWNS_THE_WORLD = """\
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
  int rank, size, sum;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  printf("rank %d of %d, %d\\n", rank, size, sum);
  return MPI_Finalize();
}
"""

# It calls no MPI of its own but mpif.h's, which suits each compiler.
ASKS_IN_FORTRAN = """\
program asks
  use mpiserve
  implicit none
  include "mpif.h"
  type(session) :: world
  type(service) :: twice
  real :: x(3, 1) = reshape([1.0, 2.0, 3.0], [3, 1]), y(3, 1)
  integer :: ierr
  call mpi_init(ierr)
  call world%open(mpi_comm_world)
  call world%find("twice", twice)
  call twice%infer(x, y)
  print "(3(g0, 1x))", nint(y)
  call world%close()
  call mpi_finalize(ierr)
end program asks
"""


def python_of(wheel: Path) -> str:
    return wheel.name.split("-")[2]


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bare.without_compilers(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="session", params=WHEELS, ids=python_of)
def wheel(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="session")
def base(wheel: Path, path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare.make_base(wheel, tmp_path_factory.mktemp(python_of(wheel)) / "base", path)


@pytest.fixture(scope="session", params=bare.MPIS)
def there(
    request: pytest.FixtureRequest,
    wheel: Path,
    base: Path,
    path: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bare:
    prefix = tmp_path_factory.mktemp(f"{python_of(wheel)}-{request.param}") / "env"
    return bare.make(base, wheel, request.param, prefix, path)


def beside(there: Bare, program: Path) -> str:
    """Run a program that asks beside a rank that serves; return what they print."""
    write(program.parent)
    serve = [there.python, "-m", "mpiserve", "serve", "c.toml"]
    done = there.mpiexec("-n", "2", str(program), ":", "-n", "1", *serve, cwd=program.parent)
    assert done.returncode == 0
    return done.stdout


def compiled(there: Bare, *command: str, cwd: Path) -> None:
    """Run a compiler, with all that is on PATH and the settings of this environment."""
    env = there.env | {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_are_wheels():
    assert WHEELS, "make wheels builds them into dist/"


def test_the_audit_finds_nothing(wheel):
    command = [sys.executable, str(ROOT / "tools/wheels.py"), "--audit", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{wheel.name}: " in done.stdout


def test_it_requires_torch_and_deepspeed_too(wheel):
    needs = bare.metadata(wheel)["Requires-Dist"]
    names = {re.match(r"[\w-]+", need)[0] for need in needs if "extra ==" not in need}
    assert set(bare.LARGE) < names
    assert {"mpi4py", "numpy"} < names


def test_its_modules_are_those_for_the_mpi_that_is_loaded(there, tmp_path):
    # Python binds all names of a module and its libraries at once, so none is missing in this MPI.
    text = (
        "import mpiserve._lib.core as c, mpiserve.bench._native; print(c.__file__, c.mpi_build())"
    )
    said = there.said(there.python, "-c", text, cwd=tmp_path)
    assert f"/mpiserve/families/{there.family}/_lib/core" in said
    assert BUILT_WITH[there.family] in said


def test_a_service_answers(there, tmp_path):
    write(tmp_path)
    command = [there.python, "-m", "mpiserve", "run", "c.toml", "sim.py"]
    done = there.mpiexec("-n", "3", *command, cwd=tmp_path)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == right(2)


def test_a_program_in_c_asks(there, tmp_path):
    (tmp_path / "asks.c").write_text(ASKS)
    flags = there.said(
        there.python, "-m", "mpiserve", "config", "--cflags", "--libs", cwd=tmp_path
    ).split()
    assert flags[0].endswith(f"/mpiserve/families/{there.family}/include")
    compiled(there, there.wrapper("mpicc"), "asks.c", *flags, "-o", "asks", cwd=tmp_path)
    assert beside(there, tmp_path / "asks") == "2 4 6\n" * 2


def test_a_code_that_uses_the_whole_world_keeps_to_its_ranks(there, tmp_path):
    (tmp_path / "owns.c").write_text(OWNS_THE_WORLD)
    compiled(there, there.wrapper("mpicc"), "owns.c", "-o", "owns", cwd=tmp_path)
    write(tmp_path)
    world = there.said(there.python, "-m", "mpiserve", "config", "--world", cwd=tmp_path).strip()
    preloaded = ["-n", "2", "env", f"LD_PRELOAD={world}", "./owns"]
    serve = [there.python, "-m", "mpiserve", "serve", "c.toml"]
    done = there.mpiexec(*preloaded, ":", "-n", "1", *serve, cwd=tmp_path)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ["rank 0 of 2, 1", "rank 1 of 2, 1"]


def test_a_program_in_fortran_asks(there, tmp_path):
    wrapper = shutil.which(f"mpifort.{there.family}")
    if not there.mpi.startswith("system") or wrapper is None:
        pytest.skip("only Debian's MPIs have Fortran")
    (tmp_path / "asks.f90").write_text(ASKS_IN_FORTRAN)
    text = "from mpiserve.tools import build_flags as b; print(b.FORTRAN, b.cflags(), b.libs())"
    sources, *flags = there.said(there.python, "-c", text, cwd=tmp_path).split()
    shims = [str(file) for file in Path(sources).glob("*.c")]
    compiled(there, there.wrapper("mpicc"), flags[0], "-c", *shims, cwd=tmp_path)
    guide = (ROOT / "docs/guide/fortran.md").read_text().partition("in this order:")[2]
    names = re.findall(r"`(\w+\.f90)`", guide.partition("\n\n")[0])
    files = [f"{sources}/{name}" for name in names]
    objects = [f"{Path(file).stem}.o" for file in shims]
    compiled(there, wrapper, *files, "asks.f90", *objects, *flags, "-o", "asks", cwd=tmp_path)
    assert beside(there, tmp_path / "asks").split() == ["2", "4", "6"] * 2


def other_family(there: Bare, folder: Path) -> tuple[str, dict[str, str]]:
    """Return the other family of the wheel, and settings with which the loader finds its MPI."""
    if there.family == "mpich":
        return "openmpi", there.env  # in a folder of the system
    bare.link_mpich(folder)
    return "mpich", there.env | {"LD_LIBRARY_PATH": str(folder)}


def test_a_program_that_is_linked_to_the_other_family_is_told_so(there, tmp_path):
    other, env = other_family(there, tmp_path / "other")
    (tmp_path / "asks.c").write_text(ASKS)
    text = there.said(there.python, "-m", "mpiserve", "config", "--cflags", "--libs", cwd=tmp_path)
    flags = text.replace(f"/families/{there.family}/", f"/families/{other}/").split()
    flags.append("-Wl,--allow-shlib-undefined")  # else the linker refuses already
    compiled(there, there.wrapper("mpicc"), "asks.c", *flags, "-o", "asks", cwd=tmp_path)
    done = subprocess.run(["./asks"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"libmpiserve was built with {BUILT_WITH[other]}" in done.stderr
    assert "but this program runs with" in done.stderr


def test_a_code_with_the_other_family_preloaded_is_told_so(there, tmp_path):
    other, env = other_family(there, tmp_path / "other")
    (tmp_path / "owns.c").write_text(OWNS_THE_WORLD)
    compiled(there, there.wrapper("mpicc"), "owns.c", "-o", "owns", cwd=tmp_path)
    text = there.said(there.python, "-m", "mpiserve", "config", "--world", cwd=tmp_path).strip()
    world = text.replace(f"/families/{there.family}/", f"/families/{other}/")
    preloaded = ["env", f"LD_PRELOAD={world}", "./owns"]
    done = subprocess.run(preloaded, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"libmpiserve_world: this library was built with {BUILT_WITH[other]}" in done.stderr
