"""Codes of Debian, as installed: under libmpiserve_world.so each gives the same answer as alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from coupling import SERVE, is_mpich
from jobs import ROOT

from mpiserve.tools import build_flags

CASES = ROOT / "tests/legacy/codes"
CONFIG = """\
[service.echo]
backend = "echo"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
"""


class Code(NamedTuple):
    """A code and a small case of it: its input, and what is compared of a file, or of stdout."""

    command: tuple[str, ...]
    inputs: tuple[str, ...]
    compared: str
    file: str = ""
    before: tuple[str, ...] = ()  # a command that one process runs first
    ranks: Mapping[str, int] = {"openmpi": 2}  # by the MPIs for which Debian has it


SATURNE = "/usr/lib/code_saturne"
CODES = {
    "lammps": Code(("lmp", "-log", "none", "-in", "atoms.in"), ("atoms.in",), r"^ +\d+ +\d\.\d.*$"),
    "cp2k": Code(("cp2k.psmp", "-i", "argon.inp"), ("argon.inp",), r"^( +\S+){5}", "argon-1.ener"),
    "nwchem": Code(
        ("nwchem.{mpi}", "water.nw"),
        ("water.nw",),
        r"Total SCF.*$|^ +\d +[OH] .*$",
        ranks={"openmpi": 2, "mpich": 1},  # that of MPICH does not converge on two, alone either
    ),
    "meep-openmpi": Code(("meep", "waveguide.ctl"), ("waveguide.ctl",), r"^flux1:.*$"),
    "code-saturne-bin": Code(
        (f"{SATURNE}/cs_solver",),
        ("cavity/setup.xml", "cavity/cavity.msh"),
        r"^[cv]  [VP].*$",  # norms, residuals, least and largest values of each step
        "run_solver.log",
        before=(f"{SATURNE}/cs_preprocess", "--out", "mesh_input", "cavity.msh"),
    ),
}


def answer(code, folder, done):
    """Return the numbers of a run, without the sign of zeros."""
    text = (folder / code.file).read_text() if code.file else done.stdout
    found = [match.group(0) for match in re.finditer(code.compared, text, re.MULTILINE)]
    return re.sub(r"-(0\.0+)\b", r" \1", "\n".join(found))


def uses_mpi(program):
    """Return whether a program, or a library of its own, is linked with MPI."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True)
    return "libmpi" in done.stdout


@pytest.mark.takes_long
@pytest.mark.every_mpi
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CODES)
def test_a_code_gives_the_same_answer_as_alone(mpiexec, tmp_path, name):
    code, mpi = CODES[name], "mpich" if is_mpich() else "openmpi"
    if mpi not in code.ranks:
        pytest.skip(f"Debian's package is for {', '.join(code.ranks)}")
    program = shutil.which(code.command[0].format(mpi=mpi))
    if not program:
        pytest.skip(f"no {code.command[0].format(mpi=mpi)} here: apt-get install {name}")
    if not uses_mpi(program):
        pytest.skip(f"{program} is of a package without MPI: apt-get install {name}")
    found = []
    for folder in (tmp_path / "alone", tmp_path / "beside"):
        folder.mkdir()
        for file in code.inputs:
            shutil.copy(CASES / file, folder)
        if code.before:
            subprocess.run(code.before, cwd=folder, capture_output=True, check=True)
        (folder / "c.toml").write_text(CONFIG)
        mine = [program, *code.command[1:]]
        job = ["-n", code.ranks[mpi], *mine]
        if found:
            world = f"LD_PRELOAD={build_flags.world()}"
            job = [*job[:2], "env", world, *mine, ":", "-n", 1, *SERVE, "c.toml"]
        env = {"CP2K_DATA_DIR": "/usr/share/cp2k", "OMP_NUM_THREADS": "1"}
        done = mpiexec(job, cwd=folder, env=env, timeout=280)
        assert done.returncode == 0
        found.append(answer(code, folder, done))
    assert "0 requests, 0 failed" in done.stderr
    assert len(found[0].splitlines()) > 3
    assert found[1] == found[0]
