"""The Fortran of docs/fortran.md compiles."""

import re

from coupling import compile_fortran
from jobs import ROOT

GUIDE = (ROOT / "docs/fortran.md").read_text()


def test_the_snippets_are_one_program(tmp_path):
    first, tensors, memory = re.findall(r"^```fortran\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    uses = re.findall(r"^use .*\n", first, re.MULTILINE)
    declared = re.findall(r"^[\w, ()]+ :: .*\n", first + memory, re.MULTILINE)
    more = ["type(service) :: gas\n", "real :: t(9), y4(3, 9), rho(9), flux(3, 9)\n"]
    body = [
        line + "\n"
        for line in (first + tensors.replace("input(y,", "input(y4,") + memory).splitlines()
        if line.startswith("call ")
    ]
    parts = ["program guide\n", "use, intrinsic :: iso_c_binding\n", *uses, *declared, *more]
    (tmp_path / "guide.f90").write_text("".join([*parts, *body, "end program guide\n"]))
    assert len(body) == 15
    compile_fortran(tmp_path / "guide.f90")
