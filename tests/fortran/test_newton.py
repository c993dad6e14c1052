"""Newton's method in Fortran, with the Jacobian that a service computes."""

import re

import languages
import pytest
from coupling import SERVE


@pytest.mark.takes_long
def test_the_convergence_is_quadratic(mpiexec, tmp_path):
    languages.build("09_newton", tmp_path, "f")
    job = ["-n", 2, "./newton_f", ":", "-n", 1, *SERVE, "coupling.toml"]
    done = mpiexec(job, cwd=tmp_path / "09_newton", timeout=100)
    assert done.returncode == 0, done.stderr
    residuals = [float(text) for text in re.findall(r"residual (\S+)", done.stdout)]
    assert residuals[-1] < 1e-12 and len(residuals) < 10
    assert float(done.stdout.split()[-1]) > 1.8
    # A batch has the cells of both ranks, but for one whose other rank came late.
    batches = re.search(r"batches: rates 0, rates.jacobian (\d+)", done.stderr)
    assert batches and len(residuals) <= int(batches[1]) < 2 * len(residuals)
