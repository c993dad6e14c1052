"""Arrays of every kind, of ranks 0 to 7, whole and in sections, equal to what Python computes."""

import numpy as np
import pytest
from coupling import compile_fortran
from fortran import arrays


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    (folder / "arrays.f90").write_text(arrays.program())
    return compile_fortran(folder / "arrays.f90")


EVERY_MPI = [pytest.param(rank, marks=pytest.mark.every_mpi) for rank in arrays.RANKS[:1]]


@pytest.mark.parametrize("rank", [*EVERY_MPI, *arrays.RANKS[1:]])
def test_every_kind(program, mpiexec, tmp_path, rank):
    seen = arrays.run(program, mpiexec, tmp_path, rank)
    assert len(seen) == 3 * len(arrays.KINDS)
    wrong = [array[:2] for array in seen if not np.array_equal(array.after, array.expected)]
    assert not wrong
    # Else nothing would have been shown.
    assert all(len(np.unique(array.given)) > 1 for array in seen if array.given.size > 1)
