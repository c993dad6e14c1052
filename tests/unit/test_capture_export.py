"""`capture export`: all rows, tensors and columns are in the other files, as they were."""

import numpy as np
import pytest
from unit.test_capture import ABOUT, RUN, arrays

from mpiserve import Capture
from mpiserve.observe import capture_files as files
from mpiserve.tools import capture_export
from mpiserve.tools.capture_export import export


@pytest.fixture
def folder(tmp_path):
    """Two files, of which the second one has longer names of versions."""
    for part, version in enumerate((b"a", b"long")):
        data = arrays(10 * part, 10)
        data["version"] = np.full(10, version)
        image = files.image({"run": RUN, "head": 3, "dropped_rows": 0}, {"s": (ABOUT, data)}, {})
        files.put(files.path_of(tmp_path, RUN, 3, part, part), image)
    return tmp_path


def npz(path):
    with np.load(path) as found:
        return dict(found)


def parquet(path):
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    found = {}
    for field in table.schema:
        values = table[field.name].combine_chunks()
        if field.metadata:
            assert field.metadata == {b"shape": b"[2]"}
            found[field.name] = np.asarray(values.flatten()).reshape(-1, 2)
        elif str(field.type) == "string":
            found[field.name] = np.array(values.to_pylist()).astype("S")
        else:
            found[field.name] = values.to_numpy(zero_copy_only=False)
    return found


def zarr(path):
    xarray = pytest.importorskip("xarray")
    with xarray.open_zarr(path, consolidated=False) as data:
        assert data["inputs.x"].dims[0] == data["outputs.y"].dims[0] == "row"
        return {name: array.values for name, array in data.items()}


READERS = [
    (npz, "a.npz", None),
    (parquet, "a.parquet", "pyarrow"),
    (zarr, "a.zarr", "zarr"),
]


@pytest.mark.parametrize("block", [3, 2**16])
@pytest.mark.parametrize(("read", "name", "needs"), READERS, ids=[name for _, name, _ in READERS])
def test_all_rows_tensors_and_columns_are_there(folder, monkeypatch, read, name, needs, block):
    if needs:
        pytest.importorskip(needs)
    monkeypatch.setattr(capture_export, "BLOCK_ROWS", block)
    assert export(str(folder), str(folder / name), None, None) == 0
    found, capture = read(folder / name), Capture(folder)
    assert found.keys() == {path.replace("/", ".") for path in capture.columns}
    for path in capture.columns:
        np.testing.assert_array_equal(found[path.replace("/", ".")], capture.read(path, 0, 20))
    assert sorted({*found["version"].tolist()}) == [b"a", b"long"]


def test_what_cannot_be_written_is_one_line(folder, capsys, monkeypatch):
    for name, text in (("a.csv", ".npz, .parquet, .zarr"), ("a.zarr", "needs zarr: pip install")):
        monkeypatch.setattr(capture_export, "find_spec", lambda name: None)
        assert export(str(folder), str(folder / name), None, None) == 1
        assert text in capsys.readouterr().err
        assert not (folder / name).exists()
