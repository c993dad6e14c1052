"""Programs that know nothing of mpiserve read what a job has captured."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from coupling import CONFIG, RUN, write
from launch.test_capture import captures

SIMULATION = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice, rank = session.service("twice"), session.comm.rank
    for step in range(1, 21):
        session.step()
        x = np.random.default_rng([rank, step]).random((60, 3), np.float32)
        twice(x)
    np.save(f"last.{rank}.npy", x)
"""

NEEDS_H5DUMP = pytest.mark.skipif(
    not shutil.which("h5dump"), reason="there is no h5dump (hdf5-tools)"
)


@pytest.fixture(params=["none", "gzip"])
def captured(mpiexec, tmp_path, request):
    """The folder of a capture of two inference ranks, which both have answered."""
    config = CONFIG + 'replicas = 2\nrows = "independent"\n'
    write(tmp_path, SIMULATION, captures(f'compression = "{request.param}"\n', config))
    assert mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"]).returncode == 0
    return tmp_path / "capture"


def whole(folder: Path) -> list[Path]:
    """The index of all ranks, then the file of each."""
    return sorted(folder.iterdir(), key=lambda path: ("rank" in path.name, path.name))


def check(folder: Path, read) -> None:
    """Compare what a reader makes of the files: the index has the rows of all ranks."""
    index, *ranks = whole(folder)
    assert len(ranks) == 2
    parts = [[read(path, name) for path in ranks] for name in ("inputs/x", "outputs/y", "step")]
    x, y, step = (np.concatenate(part) for part in parts)
    assert len(x) == 2 * 20 * 60 and (y == 2 * x).all()
    for name, array in (("inputs/x", x), ("outputs/y", y), ("step", step)):
        np.testing.assert_array_equal(read(index, name), array)
    for rank in range(2):
        last = np.load(folder.parent / f"last.{rank}.npy")
        found = x[step == 20]
        assert all((found == row).all(1).sum() == 1 for row in last)


@NEEDS_H5DUMP
@pytest.mark.takes_long
def test_h5dump_reads_a_capture(captured, tmp_path):
    def read(path, name):
        kind, *shape = (np.float32, -1, 3) if "/" in name else (np.int64, -1)
        command = ["h5dump", "-d", f"/twice/{name}", "-b", "NATIVE", "-o", "dump", path]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return np.fromfile(tmp_path / "dump", kind).reshape(shape)

    check(captured, read)
    for path in whole(captured):
        done = subprocess.run(["h5dump", "-A", path], capture_output=True, text=True)
        assert done.returncode == 0 and "signature" in done.stdout


@pytest.mark.takes_long
def test_xarray_reads_a_capture(captured):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")

    def read(path, name):
        *side, variable = name.split("/")
        group = "/".join(["twice", *side])
        with xarray.open_dataset(path, group=group, engine="h5netcdf", phony_dims="sort") as data:
            return data[variable].values

    check(captured, read)


@pytest.mark.takes_long
@pytest.mark.parametrize("compression", ["zstd", "blosc2", "lz4"])
def test_files_with_a_filter_of_hdf5plugin_are_read_where_that_is(mpiexec, tmp_path, compression):
    pytest.importorskip("hdf5plugin")
    write(tmp_path, SIMULATION, captures(f'compression = "{compression}"\n'))
    assert mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"]).returncode == 0
    index, rank = whole(tmp_path / "capture")
    for path in (index, rank):
        with h5py.File(path) as file:
            x, y = file["twice/inputs/x"], file["twice/outputs/y"]
            assert len(x) == 2 * 20 * 60 and (y[:] == 2 * x[:]).all()
    with h5py.File(rank) as file:
        assert file["twice/inputs/x"].id.get_create_plist().get_nfilters() > 0
