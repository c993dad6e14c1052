"""Examples 02 to 04, and 10, in all three languages."""

import languages
import pytest
from coupling import first_is_quick


# The other way round than in the suite examples: another one is quick.
@pytest.mark.parametrize("example", first_is_quick(reversed(languages.PROGRAMS)))
def test_c_fortran_and_python(example, mpiexec, tmp_path):
    languages.check(example, mpiexec, tmp_path, "c", "f")
