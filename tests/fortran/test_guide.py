"""The Fortran of docs/guide/fortran.md compiles."""

import re

from coupling import compile_fortran
from jobs import ROOT

GUIDE = (ROOT / "docs/guide/fortran.md").read_text()

C = "use, intrinsic :: iso_c_binding\n"

# What the snippets use and do not declare.
MORE = """\
type(service) :: gas, columns, segmenter
real :: t(9), y4(3, 9), rho(9), flux(3, 9)
real :: image(512, 512, 3, 1)
real, target :: fields(4, 5, 3), rates(4, 5, 3), fluxes(4, 5, 3)
"""

# What the procedures of the snippets call.
INTEGRATE = """\
subroutine integrate(state, rate)
real, intent(in) :: state(:, :)
real, intent(out) :: rate(:, :)
rate = state
end subroutine integrate
"""


def test_the_snippets_are_one_program(tmp_path):
    snippets = re.findall(r"^```fortran\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    procedures = [snippet for snippet in snippets if snippet.startswith("subroutine")]
    first, *others = [snippet for snippet in snippets if snippet not in procedures]
    uses = re.findall(r"^use .*\n", first, re.MULTILINE)
    text = "".join([first, *others]).replace("my_input(y,", "my_input(y4,")
    declared = re.findall(r"^[\w, ()]+ :: .*\n", text, re.MULTILINE)
    body = [line + "\n" for line in text.splitlines() if line.startswith("call ")]
    module = ["module own\n", C, "contains\n", *procedures, INTEGRATE, "end module own\n"]
    program = ["program guide\n", "use own\n", C, *uses, *declared, MORE, *body]
    (tmp_path / "guide.f90").write_text("".join([*module, *program, "end program guide\n"]))
    assert (len(body), len(procedures)) == (24, 1)
    compile_fortran(tmp_path / "guide.f90")
