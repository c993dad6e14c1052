"""Examples 02 to 04 in C and Python."""

import languages
import pytest


@pytest.mark.parametrize("example", languages.PROGRAMS)
def test_c_and_python(example, mpiexec, tmp_path):
    languages.check(example, mpiexec, tmp_path, "c")
