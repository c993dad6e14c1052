"""What libmpiserve_fortran.so exports: the modules, and nothing of the C files under them."""

import subprocess
from pathlib import Path

import mpiserve


def test_only_the_modules_are_exported():
    library = Path(mpiserve.__file__).parent / "lib/libmpiserve_fortran.so"
    command = ["nm", "-D", "--defined-only", library]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in text.splitlines()}
    assert "__mpiserve_MOD_session_open" in exported
    assert {name for name in exported if not name.startswith("__mpiserve_")} == set()
