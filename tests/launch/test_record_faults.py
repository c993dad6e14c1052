"""Pairs are recorded while ranks die, while the buffer is full, and with arrays that do not fit."""

from __future__ import annotations

from textwrap import indent

import numpy as np
import pytest
from coupling import CONFIG, RUN, is_mpich, write
from launch.test_capture import captures
from launch.test_deaths import BEHIND_SHELL, PIDS, SURVIVE

import mpiserve

STEPS, AT, SLOTS = 200, 100, 4
PIDS_OF_RANKS = f"import sys\n\nif 'c.toml' in sys.orig_argv:\n{indent(PIDS, '    ')}"
REPLICAS = captures(config=CONFIG + 'replicas = 2\nrows = "independent"\n')

# In one step somebody is killed, maybe this rank itself. What is recorded is small, or large.
KILLS = f"""\
import os
import signal
import sys

import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice, rank = session.service("twice"), session.comm.rank
    x = np.empty((60, 3), np.float32)
    for step in range(1, {STEPS} + 1):
        session.step()
        if step == int(sys.argv[2]) and rank == 1:
            os.kill(int(open(f"pid.{{sys.argv[1]}}").read()), signal.SIGKILL)
        rows = 60 if step % 2 else 2
        x[:] = step
        try:
            assert twice.record(x[:rows], -x[:rows])
        except mpiserve.PeerError as error:
            print(f"rank {{rank}} step {{step}}: {{error}}", flush=True)
    print(f"rank {{rank}} is done", flush=True)
"""


def job_with_a_death(mpiexec, folder, victim, at=AT):
    """Run KILLS where launchers let the others go on; return what it says."""
    write(folder, KILLS, REPLICAS)
    (folder / "sitecustomize.py").write_text(PIDS_OF_RANKS)
    env, shell = {"PYTHONPATH": str(folder)}, []
    if is_mpich():  # tells nobody: the kernel of the node does
        env, shell = env | {"MPISERVE_TRANSPORT": "shared"}, BEHIND_SHELL
    done = mpiexec([*SURVIVE, "-n", 4, *shell, *RUN, "c.toml", "sim.py", victim, at], env=env)
    assert done.returncode == (7 if is_mpich() else 0)
    return done.stdout + done.stderr  # an error of close is there


def steps_of(folder, rank):
    """Return the time steps whose pairs are in the capture, each of them whole and right."""
    capture = mpiserve.Capture(folder / "capture", source="physics")
    inputs, outputs = capture[capture.column("rank") == rank]
    steps = capture.column("step")[capture.column("rank") == rank]
    assert (inputs["x"] == steps[:, None]).all() and (outputs["y"] == -inputs["x"]).all()
    found, rows = np.unique(steps, return_counts=True)
    assert (rows == np.where(found % 2, 60, 2)).all()
    return found.tolist()


@pytest.mark.takes_long
def test_a_client_that_dies_costs_the_end_of_its_own_pairs(mpiexec, tmp_path):
    said = job_with_a_death(mpiexec, tmp_path, 1)
    assert "rank 0 is done" in said and "PeerError" not in said
    assert steps_of(tmp_path, 0) == [*range(1, STEPS + 1)]
    found = steps_of(tmp_path, 1)
    assert found == [*range(1, len(found) + 1)] and len(found) < AT


@pytest.mark.every_mpi
@pytest.mark.takes_long
@pytest.mark.parametrize("at", [AT, STEPS])  # a record says it, or close does
def test_an_inference_rank_that_dies_costs_the_pairs_on_their_way_and_one_error(
    mpiexec, tmp_path, at
):
    said = job_with_a_death(mpiexec, tmp_path, 3, at)
    assert "rank 0 is done" in said and "rank 1 is done" in said
    assert steps_of(tmp_path, 0) == [*range(1, STEPS + 1)]
    lost = {*range(1, STEPS + 1)} - {*steps_of(tmp_path, 1)}
    refused = {step for step in range(1, STEPS + 1) if f"rank 1 step {step}: " in said}
    assert len(refused) <= 1 and refused <= lost
    assert len(lost - refused) <= SLOTS and min(lost, default=at) >= at - SLOTS
    assert not lost or "rows that were recorded before are perhaps not captured" in said


FULL = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    x = np.arange(600_000, dtype=np.float32).reshape(-1, 3)
    assert twice.record(x, -x)
"""


@pytest.mark.takes_long
@pytest.mark.parametrize("on_full", ["drop", "wait"])
def test_a_record_larger_than_the_buffer_is_dropped_in_parts_or_waits(mpiexec, tmp_path, on_full):
    settings = f'on_full = "{on_full}"\nbuffer_bytes = {2**20}\ncompression = "gzip"\n'
    write(tmp_path, FULL, captures(settings + "compression_level = 9\n"))
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 0, done.stderr
    inputs, outputs = mpiserve.Capture(tmp_path / "capture")[:]
    rows = len(inputs["x"])
    assert (outputs["y"] == -inputs["x"]).all()
    if on_full == "wait":
        assert rows == 200_000 and "dropped" not in done.stderr
        assert (inputs["x"].reshape(-1) == np.arange(600_000)).all()
        return
    dropped = done.stderr.partition(" dropped")[0].split()[-1] if "dropped" in done.stderr else "0"
    assert rows + int(dropped) == 200_000


UNFIT = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    x, wide = np.zeros((5, 3), np.float32), np.zeros((5, 4), np.float32)
    for inputs, outputs in [
        (x, x[:3]),
        (x, wide),
        (wide, x),
        (x.astype(np.float64), x),
        (x, x.astype(np.int32)),
        (x, {"z": x}),
        ({"w": x}, x),
        (x, ()),
        (x, (x, x)),
        (x, (x,) * 17),
        (x, None),
    ]:
        try:
            twice.record(inputs, outputs)
            print("no error")
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    assert twice.record(x, x)
"""


def test_arrays_that_do_not_fit_are_told_and_nothing_of_them_is_kept(mpiexec, tmp_path):
    write(tmp_path, UNFIT, captures())
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 0, done.stderr
    assert [line.replace("service 'twice'", "-") for line in done.stdout.splitlines()] == [
        "ArgumentError: -, output 'y': 3 rows, other tensors of the call have more or less",
        "ArgumentError: -, output 'y': shape is [5, 4], the signature says [rows, 3]",
        "ArgumentError: -, input 'x': shape is [5, 4], the signature says [rows, 3]",
        "DtypeError: -, input 'x': dtype is float64, the signature says float32",
        "DtypeError: -, output 'y': dtype is int32, the signature says float32",
        "ArgumentError: -: output 'z' is unknown; the signature has y",
        "ArgumentError: -: input 'w' is unknown; the signature has x",
        "ArgumentError: -: 0 outputs given, the signature has 1 (y)",
        "ArgumentError: -: 2 outputs given, the signature has 1 (y)",
        "ArgumentError: -: 17 arrays, of 16 at most",
        "ArgumentError: -, out: a NoneType is no array",
    ]
    assert "5 rows were captured, 5 of them recorded" in done.stderr
