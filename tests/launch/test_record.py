"""Pairs that a simulation records are in the capture beside the answers, and told apart."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from coupling import CONFIG, RUN, write
from launch.test_capture import THREE, captures, tool

import mpiserve
from mpiserve.errors import ArgumentError

# One row, as many as lie in a slot, in leased rows, and more than a batch has; the arrays change
# at once. The answers of the models are there too.
RECORDS = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank = session.comm.rank
    rng = np.random.default_rng(rank)
    kept = {}
    for step, rows in enumerate((1, 5, 60, 200), 1):
        session.step()
        for name in ("echo", "child"):
            service = session.service(name)
            if name == "echo":
                x = rng.random((rows, 2)), rng.integers(0, 9, rows, np.int32)
                y = {"m": x[1] + 1, "b": x[0] - 1}
            else:
                x = rng.random((rows, 3), np.float32)
                y = x + 1
            service(*x) if name == "echo" else service(x)
            for i, array in enumerate((*x, y["b"], y["m"]) if name == "echo" else (x, y)):
                kept[f"{name}.{step}.{i}"] = array.copy()
            assert service.record(x, y)
            for array in (*x, *y.values()) if name == "echo" else (x, y):
                array[...] = 77
    np.savez(f"kept.{rank}.npz", **kept)
    try:
        service.record(x, y[:3])
    except mpiserve.ArgumentError as error:
        print(error)
"""


def test_recorded_pairs_are_in_the_capture_bit_for_bit_beside_the_answers(mpiexec, tmp_path):
    write(tmp_path, RECORDS, THREE)
    done = mpiexec(["-n", 5, *RUN, "c.toml", "sim.py"], timeout=90)
    assert done.returncode == 0
    assert done.stdout.count("3 rows, other tensors of the call") == 2
    for name in ("echo", "child"):
        capture = mpiserve.Capture(tmp_path / "capture", name, "physics")
        assert len(capture) == len(mpiserve.Capture(tmp_path / "capture", name, "model")) == 2 * 266
        assert len(mpiserve.Capture(tmp_path / "capture", name)) == 4 * 266
        for column in ("batch", "batch_rows", "generation"):
            assert not capture.column(column).any()
        steps, ranks = capture.column("step"), capture.column("rank")
        for rank in range(2):
            with np.load(tmp_path / f"kept.{rank}.npz") as kept:
                for step in range(1, 5):
                    inputs, outputs = capture[(steps == step) & (ranks == rank)]
                    for i, array in enumerate((*inputs.values(), *outputs.values())):
                        assert array.tobytes() == kept[f"{name}.{step}.{i}"].tobytes()
    assert done.stderr.count("1064 rows were captured, 532 of them recorded") == 2


STOPPED = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    session.unload("twice")
    x = np.ones((3, 3), np.float32)
    for n in range(100):
        assert twice.record((n * x,), {"y": -n * x})
"""


def test_pairs_are_kept_of_a_service_without_a_model(mpiexec, tmp_path):
    write(tmp_path, STOPPED, captures())
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 0, done.stderr
    assert "300 rows were captured, 300 of them recorded" in done.stderr
    inputs, outputs = mpiserve.Capture(tmp_path / "capture")[:]
    assert (inputs["x"][:, 0] == np.arange(300) // 3).all()
    assert (outputs["y"] == -inputs["x"]).all()
    assert "0 rows in 0 batches" in tool(tmp_path, "replay", "capture")


UNKEPT = """\
import time

import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    x = np.ones((3, 3), np.float32)
    while twice.record(x, x):
        time.sleep(0.01)
    assert not twice.record(x, x)
"""


@pytest.mark.takes_long
@pytest.mark.parametrize("table", ["", '[capture]\nservices = ["other"]\n'], ids=["none", "other"])
def test_what_nobody_captures_is_not_kept_and_that_is_said_once(mpiexec, tmp_path, table):
    other = CONFIG.replace("[service.twice]", "[service.other]") if table else ""
    write(tmp_path, UNKEPT, CONFIG + other + table)
    done = mpiexec(["-n", 3 if table else 2, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("what this rank records is not kept") == 1


@pytest.mark.takes_long
def test_a_capture_of_both_is_told_apart_by_every_reader(mpiexec, tmp_path):
    write(tmp_path, RECORDS, THREE.replace("[service.here]", "[service.unused]"))
    assert mpiexec(["-n", 5, *RUN, "c.toml", "sim.py"], timeout=90).returncode == 0
    shown = tool(tmp_path, "capture", "info", "capture")
    assert "child: 532 of the rows come from the physics" in shown and "1064" in shown
    tool(tmp_path, "capture", "merge", "capture", "-o", "all.h5")
    for source, rows in (("physics", 532), ("model", 532)):
        command = ["capture", "export", "all.h5", "-o", "a.npz", "--service", "child"]
        tool(tmp_path, *command, "--source", source)
        with np.load(tmp_path / "a.npz") as arrays:
            assert len(arrays["rank"]) == rows
            assert (arrays["source"] == (source == "physics")).all()
            more = arrays["inputs.x"] + 1 if source == "physics" else 2 * arrays["inputs.x"]
            assert (arrays["outputs.y"] == more).all()
    replayed = tool(tmp_path, "replay", "capture")
    assert "service child: 532 rows in" in replayed and "row " not in replayed
    with h5py.File(tmp_path / "all.h5") as file:
        assert "physics" not in file["child"] and "record()" in str(
            file["child/source"].attrs["description"]
        )
    with pytest.raises(ArgumentError, match="source 'both': model or physics"):
        mpiserve.Capture(tmp_path / "all.h5", "child", "both")
