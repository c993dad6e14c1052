"""Examples 02 to 04 in C and Python."""

import languages
import pytest
from coupling import first_is_quick


# The suite fortran runs all of them, under the MPIs that have a Fortran wrapper.
@pytest.mark.parametrize("example", first_is_quick(languages.PROGRAMS))
def test_c_and_python(example, mpiexec, tmp_path):
    languages.check(example, mpiexec, tmp_path, "c")
