"""The tutorial "Your own Fortran code in twenty minutes", every file and command of it."""

import pytest
import tutorial


@pytest.mark.timeout(300)
def test_your_own_fortran_code_in_twenty_minutes(mpiexec, tmp_path):
    assert tutorial.follow(tutorial.page("fortran"), mpiexec, tmp_path) == 3
