"""The tutorial "Your own model in ten minutes", every file and command of it."""

import pytest
import tutorial


@pytest.mark.takes_long
@pytest.mark.timeout(400)
def test_your_own_model_in_ten_minutes(mpiexec, tmp_path):
    assert tutorial.follow(tutorial.page("model"), mpiexec, tmp_path) == 4
