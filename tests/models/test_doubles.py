"""A simulation with float64 and a model with float32, from C and from Python."""

import shutil
from pathlib import Path

import doubles
import pytest
from coupling import RUN, SERVE, compile_simulation, lines

HERE = Path(__file__).parent

SIMULATION = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank = session.comm.rank
    twice, turned = session.service("twice"), session.service("turned")
    x = np.random.default_rng(rank).standard_normal((4, 3))
    x[3] = np.inf, np.nan, 1e-40
    expected = (2 * x.astype(np.float32)).astype(np.float64)
    for turn in range(5):
        session.comm.Barrier()
        if turn == 2 and rank == 1:
            try:
                twice(np.where(np.arange(4)[:, None] == 1, -1e39, np.ones((4, 3))))
            except mpiserve.ModelError as error:
                print(error, flush=True)
        else:
            np.testing.assert_array_equal(twice(x), expected)
    z = x[:3] + 1j * x[2::-1]
    expected = (np.complex64(1j) * z.astype(np.complex64)).astype(z.dtype)
    np.testing.assert_array_equal(turned(z), expected)
    out = np.empty_like(z)
    assert turned(z, out=out) is out
    np.testing.assert_array_equal(out, expected)
    print("right", flush=True)
"""


def test_from_python(mpiexec, tmp_path):
    (tmp_path / "models.py").write_text(doubles.MODELS)
    (tmp_path / "c.toml").write_text(doubles.CONFIG)
    (tmp_path / "sim.py").write_text(SIMULATION)
    env = {"MPISERVE_TRANSPORT": "shared"}
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=120, env=env)
    assert done.returncode == 0
    assert lines(done.stdout) == [doubles.BEYOND, "right", "right"]
    assert "is converted" not in done.stderr


@pytest.mark.takes_long
def test_from_c(mpiexec, tmp_path):
    program = compile_simulation(Path(shutil.copy(HERE / "doubles.c", tmp_path)), "-lm")
    (tmp_path / "models.py").write_text(doubles.MODELS)
    (tmp_path / "c.toml").write_text(doubles.CONFIG)
    env = {"MPISERVE_TRANSPORT": "rma"}
    done = mpiexec(["-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"], timeout=120, env=env)
    assert done.returncode == 0
    assert lines(done.stdout) == [doubles.BEYOND, "right"]
