"""Which ISO_Fortran_binding.h the library is compiled with: that of its Fortran compiler."""

import shutil
import subprocess

import pytest
from jobs import ROOT

RULE = "said: ; @echo said $(FORTRAN_BINDING)"


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize("version", ["GNU Fortran 12.2.0", "flang version 19.1.7"])
def test_a_header_of_another_compiler_in_the_same_folder_is_not_taken(version, tmp_path):
    header = tmp_path / "lib/clang/19/include/ISO_Fortran_binding.h"
    header.parent.mkdir(parents=True)
    header.touch()
    compiler = tmp_path / "bin/fc"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}"\n')
    compiler.chmod(0o755)
    command = ["make", "-s", "-C", ROOT / "csrc", f"--eval={RULE}", "said", f"FC={compiler}"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    _, *said = made.stdout.split()
    assert [path.endswith(header.name) for path in said] == [True] * ("GNU" not in version)
