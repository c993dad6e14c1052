"""What MPISERVE_PROFILE=summary says of a job: where the time went, however the job ended."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from coupling import RUN, SERVE, compile_simulation, write

from mpiserve.observe import spans, trace

PROFILE = {"MPISERVE_PROFILE": "summary"}
TRACE = {"MPISERVE_PROFILE": "trace"}  # which has all that a summary has
REPORT = "mpiserve-profile.json"

# Each service has one slow stage. Services with rows that belong together wait for nobody.
SERVICE = """\
[service.{name}]
{model}
inputs = [{{ name = "x", dtype = "float32", shape = [-1, {columns}] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, {columns}] }}]
max_batch_rows = {rows}
max_delay_us = {delay}
rows = "{kind}"
"""
PYTHON_MODEL = 'backend = "python"\nmodel = "model:{}"'
KINDS = {  # model, columns, max_batch_rows, max_delay_us, rows
    "engine": ("slow", 3, 64, 0, "together"),
    "late": ("same", 3, 64, 1_000_000, "independent"),
    "full": ("slow", 3, 1, 0, "together"),
    "large": ("", 400_000, 16, 0, "independent"),
    "taken": ("same", 3, 64, 0, "together"),
    "dies": ("dies", 3, 64, 0, "together"),
}
MODELS = """\
import os
import time


def same(x):
    return x


def slow(x):
    time.sleep(0.005)
    return x


def dies(x):
    if x[0, 0] == 7:
        os._exit(7)
    return x
"""
PLANTED = """\
import time

import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank, comm = session.comm.rank, session.comm
    x = np.ones((1, 3), np.float32)

    def phase(name):
        service = session.service(name)
        comm.Barrier()
        service(np.ones((1, service.inputs[0].shape[1]), np.float32))
        comm.Barrier()
        return service

    engine = phase("engine")
    if rank == 0:
        begin = time.perf_counter()
        for step in range(20):
            session.step()
            time.sleep(0.002)
            engine(x)
        print(f"total {time.perf_counter() - begin - 0.04}", flush=True)
    comm.Barrier()
    late = phase("late")
    for _ in range(10):
        time.sleep(0.05 * (rank == 2))
        late(x)
        comm.Barrier()
    full = phase("full")
    if rank == 0:
        for request in [full.submit(x) for _ in range(24)]:
            request.result()
    comm.Barrier()
    large = phase("large")
    if rank == 1:
        big = np.ones((16, 400_000), np.float32)
        for _ in range(8):
            large(big)
    comm.Barrier()
    taken = phase("taken")
    if rank == 1:
        for _ in range(5):
            request = taken.submit(x)
            time.sleep(0.05)
            request.result()
    comm.Barrier()
    dies = phase("dies")
    if rank == 2:
        try:
            dies(7 * x)
        except mpiserve.ModelError as error:
            print("died", flush=True)
    report = session.report()
    assert {one["rank"] for one in report["simulation"]} == {0, 1, 2}
"""


def services() -> str:
    made = []
    for name, (model, columns, rows, delay, kind) in KINDS.items():
        runs = PYTHON_MODEL.format(model) if model else 'backend = "echo"\npool_bytes = 60_000_000'
        limits = {"columns": columns, "rows": rows, "delay": delay, "kind": kind}
        made.append(SERVICE.format(name=name, model=runs, **limits))
    names = ", ".join(f'"{name}"' for name in KINDS)
    return "\n".join(made) + f"\n[pool.all]\nservices = [{names}]\n"


def stages_of(service):
    return {name: one["sum"] for name, one in service["stages"].items()}


@pytest.mark.timeout(90)
def test_the_report_names_each_stage_that_was_made_slow(mpiexec, tmp_path):
    write(tmp_path, PLANTED, services())
    (tmp_path / "model.py").write_text(MODELS)
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"], env=PROFILE)
    assert done.returncode == 0
    report = json.loads((tmp_path / REPORT).read_text())
    named = report["services"]
    assert named["engine"]["largest"] == "engine"
    assert named["late"]["largest"] == "batch" and named["late"]["straggler"] == 2
    assert named["full"]["largest"] == "slot"
    stages = stages_of(named["large"])
    assert stages["copy in"] + stages["copy out"] > 0.25 * sum(stages.values())  # else: 0.01
    assert any("copies take" in hint for hint in report["hints"])
    assert named["taken"]["largest"] == "take"
    assert sum(sum(one["errors"].values()) for one in named["dies"]["clients"]) == 1
    assert any("batches waited for rank 2" in hint for hint in report["hints"])

    # The stages add up to what the caller saw, and the steps say so too.
    client = next(one for one in named["engine"]["clients"] if one["rank"] == 0)
    seen = float(done.stdout.split("total ")[1].split()[0])
    first = client["total"]["sum"] - seen  # the call in phase()
    assert abs(sum(one["sum"] for one in client["stages"].values()) - client["total"]["sum"]) < 1e-6
    assert first < 0.2 * seen and client["total"]["sum"] > 0.98 * seen
    rank = report["simulation"][0]
    assert rank["steps"] == 20 and rank["step_waited"]["p50"] >= 0.004

    # The answer is the first line, and the parts are gone.
    begin = done.stderr.index("mpiserve: a time step waited ")
    assert "for models: " in done.stderr[begin:].splitlines()[0]
    assert not (tmp_path / "mpiserve-profile.parts").exists()
    again = subprocess.run(
        [sys.executable, "-m", "mpiserve", "report", REPORT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert again.stdout in done.stderr and again.returncode == 0


ENDS = """\
import os
import signal
import time

from pathlib import Path

import mpiserve
import numpy as np


def launcher():  # which a user signals: the topmost of its processes
    found, pid = 0, os.getppid()
    while Path(f"/proc/{{pid}}/comm").read_text().startswith(("mpi", "prte", "hydra")):
        found = pid
        pid = int(Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[1])
    return found


with mpiserve.open() as session:
    rank = session.comm.rank
    twice = session.service("twice")
    for step in range(20):
        session.step()
        twice(np.ones((2, 3), np.float32))
    session.comm.Barrier()
    {ends}
"""
SIGNAL = "rank == 0 and os.kill(launcher(), signal.{}) or time.sleep(30)"
WAYS = {
    "SIGTERM": SIGNAL.format("SIGTERM"),
    "SIGINT": SIGNAL.format("SIGINT"),
    "exception": "assert rank, 'planted'",
    "abort": "rank == 0 and session.comm.Abort(3) or time.sleep(30)",
}


def ended(mpiexec, folder, how):
    write(folder, ENDS.format(ends=WAYS[how]))
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env=TRACE, timeout=40)
    assert done.returncode != 0
    return done


@pytest.mark.parametrize(
    "how",
    [
        "SIGTERM",
        *(pytest.param(how, marks=pytest.mark.takes_long) for how in list(WAYS)[1:]),
    ],
)
def test_there_is_a_report_after_another_end(mpiexec, tmp_path, how):
    ended(mpiexec, tmp_path, how)
    if not (tmp_path / REPORT).exists():  # the launcher kills at once
        folder = tmp_path / "mpiserve-profile.parts"
        command = [sys.executable, "-m", "mpiserve", "report", str(folder)]
        assert "waited" in subprocess.run(command, capture_output=True, text=True).stdout
    report = json.loads((tmp_path / REPORT).read_text())
    assert [one["steps"] for one in report["simulation"]] >= [19, 19]
    assert report["services"]["twice"]["requests"] == 40
    traces = trace.read([tmp_path / "mpiserve-profile.parts"])
    assert [len(one.of(spans.REQUEST)) for one in traces] == [20, 20, 0]


@pytest.mark.takes_long
def test_a_wrong_value_is_an_error_of_open_and_so_is_a_folder_that_cannot_be_made(
    mpiexec, tmp_path
):
    write(tmp_path)
    wrong = {"MPISERVE_PROFILE": "all"}
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], env=wrong)
    assert done.returncode and "MPISERVE_PROFILE is to be off, summary or trace" in done.stderr
    nowhere = PROFILE | {"MPISERVE_PROFILE_FILE": "/proc/none/report.json"}
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], env=nowhere)
    assert done.returncode and "/proc/none/report.parts" in done.stderr


C_PROGRAM = """\
#include <mpiserve.h>
#include <stdio.h>

#define CHECK(call) \\
  do { \\
    if (call) return printf("%s\\n", mpiserve_last_error()), 1; \\
  } while (0)

int main(void) {
  mpiserve_session *session;
  mpiserve_service *twice;
  mpiserve_profile profile;
  float x[6] = {1}, y[6];
  mpiserve_tensor in = {NULL, x, MPISERVE_FLOAT32, 2, {2, 3}};
  mpiserve_tensor out = {NULL, y, MPISERVE_FLOAT32, 2, {2, 3}};
  MPI_Init(NULL, NULL);
  CHECK(mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
  CHECK(mpiserve_service_find(session, "twice", &twice));
  for (int i = 0; i < 50; i++) {
    CHECK(mpiserve_step(session));
    CHECK(mpiserve_infer(twice, 1, &in, 1, &out, 10, NULL));
  }
  CHECK(mpiserve_profile_get(session, &profile));
  long long sum = 0;
  for (int i = 0; i < MPISERVE_STAGES; i++) sum += profile.stages_ns[i];
  printf("on %d requests %lld sums %d waited %d\\n", profile.on, (long long)profile.requests,
         sum == profile.total_ns, profile.waited_ns == profile.total_ns);
  CHECK(mpiserve_close(session));
  MPI_Finalize();
}
"""


def test_a_program_in_c_waits_for_all_of_its_requests(mpiexec, tmp_path):
    write(tmp_path)
    (tmp_path / "sim.c").write_text(C_PROGRAM)
    program = compile_simulation(tmp_path / "sim.c")
    # One rank that asks is enough.
    command = ["-n", 2, program, ":", "-n", 1, "env", "MPISERVE_PROFILE=trace", *SERVE, "c.toml"]
    done = mpiexec(command)
    assert done.returncode == 0
    assert done.stdout == "on 1 requests 50 sums 1 waited 1\n" * 2
    assert "mpiserve: a time step waited" in done.stderr
    assert json.loads((tmp_path / REPORT).read_text())["missing"] == []
    traces = trace.read([tmp_path / "mpiserve-profile.parts"])
    assert [len(one.of(spans.REQUEST)) for one in traces] == [50, 50, 0]
