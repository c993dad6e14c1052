"""The files of a capture, without a job: what counts, what is merged, and how it is read."""

from __future__ import annotations

import json
import mmap
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

import mpiserve
from mpiserve._lib.ring import FIELDS, Ring
from mpiserve.config.capture import CaptureConfig, announced, wanted
from mpiserve.errors import ArgumentError, ConfigError
from mpiserve.observe import capture_data
from mpiserve.observe import capture_files as files

RUN = "00000000000000ab"
X = {"name": "x", "dtype": "bfloat16", "shape": [2]}
Y = {"name": "y", "dtype": "float64", "shape": []}
ABOUT = {"signature": json.dumps({"inputs": [X], "outputs": [Y]}), "model": "", "backend": ""}


def arrays(begin, rows, version=b""):
    numbers = np.arange(begin, begin + rows)
    columns = {name: numbers.astype(dtype) for name, dtype in FIELDS.items() if name != "model"}
    columns |= {"head": numbers.astype(np.int32), "version": np.full(rows, version, "S4")}
    x = np.stack([numbers, numbers + 0.5], 1).astype(ml_dtypes.bfloat16)
    return {"inputs/x": x.view(np.uint16), "outputs/y": numbers * 1.0, **columns}


def put(folder, begin, rows, *which, name="s", rank=3, about=ABOUT):
    attributes = {"run": RUN, "head": rank, "dropped_rows": begin}
    data = files.image(attributes, {name: (about, arrays(begin, rows))}, {})
    files.put(files.path_of(folder, RUN, rank, *which), data)


@pytest.fixture
def folder(tmp_path):
    """Rows 0 to 9 of a rank in three parts, and rows 10 to 14 of another one in one file."""
    put(tmp_path, 0, 4, 0, 0)
    put(tmp_path, 4, 1, 1, 1)
    put(tmp_path, 5, 5, 2, 2)
    put(tmp_path, 10, 5, rank=4)
    return tmp_path


def values(pair):
    inputs, outputs = pair
    assert inputs["x"].dtype == ml_dtypes.bfloat16
    assert (inputs["x"][..., 0].astype(float) == outputs["y"]).all()
    return outputs["y"].tolist()


@pytest.mark.parametrize(
    "which",
    [0, 14, -1, slice(None), slice(2, 12), slice(1, 15, 3), slice(3, 3), slice(0, 15, 7)],
    ids=str,
)
def test_rows_are_those_of_all_files_one_after_the_other(folder, which):
    capture = mpiserve.Capture(folder)
    assert len(capture) == 15
    assert values(capture[which]) == np.arange(15)[which].tolist()


@pytest.mark.parametrize("which", [[14, 0, 0, -1, 5], [], np.arange(15) % 4 == 0], ids=str)
def test_rows_come_in_the_order_in_which_they_are_asked_for(folder, which):
    capture = mpiserve.Capture(folder)
    assert values(capture[which]) == np.arange(15)[which if len(which) else slice(0)].tolist()
    if isinstance(which, list):
        assert [float(y["y"]) for _, y in capture.__getitems__(which)] == values(capture[which])


@pytest.mark.parametrize(("gap", "block"), [(1, 64), (24, 2**23), (2**17, 48), (2**17, 2**23)])
def test_rows_that_are_far_apart_are_read_in_pieces(folder, monkeypatch, gap, block):
    monkeypatch.setattr(capture_data, "GAP_BYTES", gap)
    monkeypatch.setattr(files, "BLOCK_BYTES", block)
    rng = np.random.default_rng(0)
    capture = mpiserve.Capture(folder)
    for _ in range(20):
        which = rng.integers(0, 15, rng.integers(2, 20))
        assert values(capture[which]) == which.tolist()
        sorted_ = np.unique(which)
        assert values(capture[sorted_]) == sorted_.tolist()


def test_a_capture_says_what_is_wrong(folder, tmp_path):
    capture = mpiserve.Capture(folder)
    with pytest.raises(IndexError):
        capture[15]
    with pytest.raises(IndexError):
        capture[[15]]
    with pytest.raises(ArgumentError, match="no column 'steps', but"):
        capture.column("steps")
    with pytest.raises(ArgumentError, match="no service 't', but s"):
        mpiserve.Capture(folder, "t")
    with pytest.raises(ArgumentError, match="no capture"):
        mpiserve.Capture(folder / "nothing")
    put(folder, 0, 1, name="t", rank=7)
    with pytest.raises(ArgumentError, match="s, t: say which service"):
        mpiserve.Capture(folder)
    other = ABOUT | {"signature": json.dumps({"inputs": [X | {"name": "z"}], "outputs": [Y]})}
    put(folder, 0, 1, rank=8, about=other)
    with pytest.raises(ArgumentError, match="signatures of 's' differ"):
        mpiserve.Capture(folder, "s")


def test_another_process_opens_the_files_itself(folder):
    capture = mpiserve.Capture(folder)
    assert values(capture[:]) == values(pickle.loads(pickle.dumps(capture))[:])


def test_parts_that_a_larger_file_holds_do_not_count(folder):
    files.merge([files.path_of(folder, RUN, 3, n, n) for n in (0, 1)], folder / "m", {})
    (folder / "m").rename(files.path_of(folder, RUN, 3, 0, 1))
    assert values(mpiserve.Capture(folder)[:]) == [*range(15)]
    put(folder, 0, 10)  # all of the rank
    assert [part.path.name for part in files.listed(folder)] == [
        f"{RUN}-rank000003.h5",
        f"{RUN}-rank000004.h5",
    ]


@pytest.mark.parametrize("compression", ["none", "gzip", "lzf"])
def test_merged_files_and_an_index_have_all_rows_and_columns(folder, compression):
    parts = [part.path for part in files.listed(folder)]
    files.merge(parts, folder / "all.h5", files.filters(compression, None))
    assert files.index(folder, RUN) == folder / f"{RUN}.h5"
    whole = arrays(0, 15)
    moved = folder.rename(folder.with_name(f"{folder.name}.moved"))
    for name in ("all.h5", f"{RUN}.h5"):
        with h5py.File(moved / name) as file:
            assert file.attrs["dropped_rows"] == 5 + 10
            for path, array in whole.items():
                np.testing.assert_array_equal(file[f"s/{path}"][:], array)
        assert values(mpiserve.Capture(moved / name)[:]) == [*range(15)]


def test_more_files_than_a_process_may_open_are_opened(folder, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    parts = [part.path for part in files.listed(folder)]
    monkeypatch.setattr(files, "SPARE_FILES", soft - 2)
    try:
        for file in files.opened_all(parts):
            file.close()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(soft + 2, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("late", [False, True], ids=["before it is opened", "while it is"])
def test_parts_may_be_merged_while_they_are_read(folder, monkeypatch, late):
    """HDF5 has no errno for a file that goes while it is opened."""
    real, merged = h5py.File, []

    def file(path, *args, **settings):
        if not merged and Path(path).name.startswith(f"{RUN}-rank"):
            merged.append(path)
            paths = [part.path for part in files.listed(folder) if part.rank == 3]
            files.merge(paths, files.path_of(folder, RUN, 3), files.filters("none", None))
            for each in paths:
                each.unlink()
            if late:
                raise OSError("can't retrieve stat info for file")
        return real(path, *args, **settings)

    before = len(mpiserve.Capture(folder))
    monkeypatch.setattr(h5py, "File", file)
    if late:
        assert len(mpiserve.Capture(folder)) == before
    else:
        assert len(mpiserve.Capture(files.index(folder, RUN))) == before
    assert merged


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), files._new(tmp_path / "a") as fresh:
        fresh.write_text("half")
        raise ValueError
    assert [*tmp_path.iterdir()] == []


def test_a_compression_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="compression 'snap'"):
        files.filters("snap", None)


def test_a_ring_that_is_closed_says_why():
    ring = Ring(mmap.mmap(-1, 2**16))
    assert (ring.closed, ring.dropped) == (None, 0)
    ring.close("the disk is full" + 300 * "!")
    assert ring.closed.startswith("the disk is full!!")


def test_the_writer_loads_no_mpi():
    code = "import sys, mpiserve.observe.capture_writer; print('mpi4py.MPI' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"


SERVICE = {
    "backend": "echo",
    "inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [-1]}],
}


def config(**capture):
    return mpiserve.Config.from_dict({"service": {"s": SERVICE}, "capture": capture})


def test_the_environment_decides_before_the_table(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MPISERVE_CAPTURE", raising=False)
    plain = mpiserve.Config.from_dict({"service": {"s": SERVICE}})
    assert wanted(plain) is None
    assert wanted(config(share=0.5))[1] == tmp_path / "capture"
    with announced(config()):
        assert wanted(plain) is not None
    assert wanted(plain) is None
    monkeypatch.setenv("MPISERVE_CAPTURE", "there")
    assert wanted(plain) == (CaptureConfig(), tmp_path / "there")
    assert wanted(config(share=0.5))[0].share == 0.5
    monkeypatch.setenv("MPISERVE_CAPTURE", "off")
    assert wanted(config()) is None


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"services": ["t"]}, "capture.services: no service 't'"),
        ({"share": 2.0}, "capture.share"),
        ({"rows": "untrusted"}, "capture.rows: 'untrusted' rows need a captured service"),
        ({"shares": 1.0}, "capture.shares: unknown key"),
        ({"compression": "lzf", "compression_level": 1}, "compression_level is not of"),
    ],
    ids=str,
)
def test_a_wrong_table_is_refused(table, text):
    with pytest.raises(ConfigError, match=text):
        config(**table)
