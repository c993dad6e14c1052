"""A service that keeps answers: what a C client has of it, and what captures and profiles say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from coupling import CONFIG, RUN, SERVE, compile_simulation, said_by_ranks, write

import mpiserve

KEEPS = CONFIG + "cache_rows = 1000\n"

# Rank 1 asks for what rank 0 has asked for. The first batch goes by Python: after it the library
# hands batches over to the child, which is another engine and begins with nothing.
IN_C = """\
#include <mpi.h>
#include <mpiserve.h>
#include <stdio.h>

enum { ROWS = 60 };

int main(int argc, char **argv) {
  float x[ROWS][3], y[ROWS][3];
  int rank, code;
  MPI_Comm comm;
  mpiserve_session *session;
  mpiserve_service *twice;
  mpiserve_stats stats;
  MPI_Init(&argc, &argv);
  code = mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session);
  if (!code) code = mpiserve_comm(session, &comm);
  if (!code) code = mpiserve_service_find(session, "twice", &twice);
  MPI_Comm_rank(comm, &rank);
  for (int i = 0; i < 3 * ROWS; i++) x[0][i] = (float)i;
  mpiserve_tensor in = {.data = x, .dtype = MPISERVE_FLOAT32, .ndim = 2, .shape = {ROWS, 3}};
  mpiserve_tensor out = in;
  out.data = y;
  for (int turn = 0; turn < 3 && !code; turn++) {
    if (rank == turn / 2) code = mpiserve_infer(twice, 1, &in, 1, &out, 60, &stats);
    MPI_Barrier(comm);
  }
  for (int i = 0; i < 3 * ROWS && !code; i++) code = y[0][i] != 2 * x[0][i];
  if (code) printf("rank %d: %d, %s\\n", rank, code, mpiserve_last_error());
  if (rank) printf("%d rows, a batch of %d\\n", (int)stats.rows, (int)stats.batch_rows);
  mpiserve_close(session);
  MPI_Finalize();
  return code != 0;
}
"""


def test_a_client_in_c_gets_what_another_one_has_asked_for(mpiexec, tmp_path):
    write(tmp_path, config=KEEPS)
    (tmp_path / "sim.c").write_text(IN_C)
    program = compile_simulation(tmp_path / "sim.c")
    done = mpiexec(["-n", 2, program, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout == "60 rows, a batch of 0\n"
    assert "60 of 180 rows (33%) were kept; 2 batches of 60.0 rows and 1.0 requests" in done.stderr


# Every row comes three times: in whole requests that are kept, and among rows that are new.
AGAIN = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice, rank = session.service("twice"), session.comm.rank
    twice(np.full((1, 3), -1 - rank, np.float32))
    session.comm.Barrier()
    for step in range(40):
        session.step()
        rows = np.arange(60 if step % 4 else 3) + 7 * step
        x = np.stack([rows, rows // 3, np.full(len(rows), rank)], 1).astype(np.float32)
        for _ in range(2):
            assert (twice(x) == 2 * x).all()
"""


def test_a_capture_has_what_the_model_has_answered_and_the_profile_the_rest(mpiexec, tmp_path):
    write(tmp_path, AGAIN, KEEPS + "[capture]\n")
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env={"MPISERVE_PROFILE": "summary"})
    assert done.returncode == 0
    capture = mpiserve.Capture(tmp_path / "capture", "twice")
    inputs, outputs = capture[np.arange(len(capture))]
    found = np.unique(inputs["x"], axis=0)
    found = found[found[:, 0] >= 0]  # but for the first row of each rank
    asked = 7 * np.arange(40)[:, None] + np.arange(60)
    wanted = np.unique(np.concatenate([asked[1::4], asked[2::4], asked[3::4]]).ravel())
    wanted = np.union1d(wanted, asked[::4, :3])
    assert len(found) == 2 * len(wanted), "all rows of both ranks"
    assert len(capture) == 2 + len(found), "and each of them once"
    np.testing.assert_array_equal(np.unique(found[:, 0]), wanted)
    np.testing.assert_array_equal(outputs["y"], 2 * inputs["x"])
    (head,) = json.loads((tmp_path / "mpiserve-profile.json").read_text())["services"]["twice"][
        "heads"
    ]
    assert head["cache_lookups"] == 2 + 2 * 2 * (30 * 60 + 10 * 3)
    assert head["cache_hits"] == head["cache_lookups"] - len(capture)
    assert f"rows whose answers were kept: {head['cache_hits']}, " in done.stderr + done.stdout


# Each rank of the replica notes the rows that it gets. With "moody" the answers of one of them are
# never alike.
PAIR = """\
import mpiserve


class Pair(mpiserve.Backend):
    def load(self):
        version = self.service.options["version"]
        self.factor = 2 if version == "moody" else int(version)
        self.moody, self.calls = version == "moody" and self.comm.rank == 1, 0
        self.seen = open(f"seen.{self.comm.rank}", "ab", buffering=0)

    def run(self, inputs):
        self.seen.write(inputs[0].tobytes())
        self.calls += self.moody
        return self.factor * inputs[0] + self.calls
"""

TOGETHER = KEEPS.replace('backend = "python"\nmodel = "model:twice"', 'backend = "pair:Pair"')
TOGETHER += """\
tensor_parallel = 2
rows = "independent"
version = "2"
options = { version = "{version}" }
"""

ASKS = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice, comm = session.service("twice"), session.comm
    x = np.arange(180, dtype=np.float32).reshape(60, 3)
    for factor in (2, 3):
        if factor == 3 and comm.rank == 0:
            session.reload("twice", "3", timeout=60)
        comm.Barrier()
        for turn in range(2):
            if comm.rank == turn:
                request = twice.submit(x)
                assert (request.result(timeout=60) == factor * x).all()
                assert request.stats["batch_rows"] == (0 if turn else 60), request.stats
            comm.Barrier()
        if comm.rank == 1:
            some = x[::-1].copy()
            some[::7, 1] = -factor
            request = twice.submit(some)
            assert (request.result(timeout=60) == factor * some).all()
            assert request.stats["batch_rows"] == len(some[::7]), request.stats
        comm.Barrier()
"""


@pytest.mark.every_mpi
def test_a_model_of_two_ranks_gets_on_both_the_rows_that_are_not_kept(mpiexec, tmp_path):
    write(tmp_path, ASKS, TOGETHER)
    (tmp_path / "pair.py").write_text(PAIR)
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 0
    assert f"{2 * (60 + 51)} of {2 * 180} rows" in done.stderr
    head, follower = ((tmp_path / f"seen.{rank}").read_bytes() for rank in range(2))
    assert head == follower
    got = np.frombuffer(head, np.float32).reshape(-1, 3)
    for factor in (2, 3):  # once by each version, so twice in all; and what is new of each
        assert (got == [3, 4, 5]).all(1).sum() == 2
        assert (got[:, 1] == -factor).sum() == 9


MOODY = """\
import mpiserve

with mpiserve.open() as session:
    try:
        session.service("twice")
    except mpiserve.ModelError as error:
        print(error, flush=True)
"""


@pytest.mark.takes_long
def test_a_model_that_is_random_on_one_of_two_ranks_is_refused(mpiexec, tmp_path):
    write(tmp_path, MOODY, TOGETHER.replace('"2"', '"moody"') + "warmup = false\n")
    (tmp_path / "pair.py").write_text(PAIR)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"])
    assert done.returncode != 0
    [said] = said_by_ranks(done)
    assert "service.twice.cache_rows: " in said and "the model is random, or has a state" in said
