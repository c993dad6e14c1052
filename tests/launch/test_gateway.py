"""A job with a gateway, asked by clients of the Open Inference Protocol that nobody has changed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from coupling import PYTHON, RUN, SERVE, is_mpich, lines, right, write
from gateway_job import Job, make, until_true

import mpiserve

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson", "urllib3"):
    pytest.importorskip(package)

TCP = """
[gateway]
address = "127.0.0.1:0"
grpc_address = "unix"
endpoint_file = "endpoint.json"
access_log = "access.log"
"""
X = np.arange(12, dtype=np.float32).reshape(4, 3)


def headers(job):
    """A new one each time: tritonclient writes into it."""
    return {"Authorization": f"Bearer {job.token}"}


def asked(http, client, binary):
    """Ask with tritonclient, its inputs and outputs as bytes or as JSON."""
    x = http.InferInput("x", X.shape, "FP32")
    x.set_data_from_numpy(X, binary_data=binary)
    y = http.InferRequestedOutput("y", binary_data=binary)
    return {"model_name": "twice", "inputs": [x], "outputs": [y], "request_id": "7"}


def test_tritonclient_and_connect_beside_a_simulation(mpiexec, tmp_path):
    http = pytest.importorskip("tritonclient.http")
    from tritonclient.utils import InferenceServerException

    make(tmp_path, TCP)
    with Job(mpiexec, tmp_path) as job:
        with http.InferenceServerClient(job.url.removeprefix("http://")) as client:
            until_true(lambda: client.is_server_ready(headers(job)))
            assert client.is_model_ready("twice", headers=headers(job))
            assert client.get_server_metadata(headers(job))["name"] == "mpiserve"
            assert client.get_model_metadata("twice", headers=headers(job))["inputs"] == [
                {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
            ]
            for binary in (True, False):
                result = client.infer(**asked(http, client, binary), headers=headers(job))
                assert (result.as_numpy("y") == 2 * X).all()
                assert result.get_response()["id"] == "7"
            client.load_model("twice", headers=headers(job))
            (entry,) = client.get_model_repository_index(headers(job))
            assert entry["state"] == "READY"
            stats = client.get_inference_statistics("twice", headers=headers(job))["model_stats"]
            assert stats[0]["inference_stats"]["success"]["count"] == 2
            with pytest.raises(InferenceServerException) as error:
                client.infer(**asked(http, client, True))
            assert error.value.status() == "401"
        asyncio.run(_ask_together(job))
        _ask_by_grpc(job)
        _check_metrics(job)
        with mpiserve.connect(job.url, job.token) as session:
            assert (session.service("twice")(X) == 2 * X).all()
    assert job.done.returncode == 0
    endpoint = f"mpiserve endpoint: {job.url}"
    file = f"mpiserve endpoint file: {tmp_path / 'endpoint.json'}"
    assert lines(job.done.stdout) == sorted([endpoint, file, *right(2)])
    log = (tmp_path / "access.log").read_text()
    assert "POST /v2/models/twice/infer 200" in log and job.token not in log
    assert not (tmp_path / "endpoint.json").exists()


def _ask_by_grpc(job):
    grpc = pytest.importorskip("tritonclient.grpc")
    mine = {"authorization": f"Bearer {job.token}"}
    with grpc.InferenceServerClient(job.grpc) as client:
        assert client.is_server_ready(mine)
        x = grpc.InferInput("x", X.shape, "FP32")
        x.set_data_from_numpy(X)
        assert (client.infer("twice", [x], headers=mine).as_numpy("y") == 2 * X).all()
        client.load_model("twice", headers=mine)
        assert (client.infer("twice", [x], headers=mine).as_numpy("y") == 2 * X).all()


def _check_metrics(job):
    """The ranks of the job, and no other, beside what the gateway counts."""
    parser = pytest.importorskip("prometheus_client.parser")
    request = urllib.request.Request(f"{job.url}/metrics", headers=headers(job))
    with urllib.request.urlopen(request, timeout=20) as reply:
        text = reply.read().decode()
    found = {family.name: family.samples for family in parser.text_string_to_metric_families(text)}
    assert len({sample.labels["run"] for family in found.values() for sample in family}) == 1
    roles = sorted(sample.labels["role"] for sample in found["mpiserve_up"])
    assert roles == ["gateway", "inference", "simulation", "simulation"]
    assert sum(sample.value for sample in found["nv_inference_count"]) > 0
    grpc = [s.value for s in found["mpiserve_gateway_requests"] if s.labels["protocol"] == "grpc"]
    assert sum(grpc) == 4


async def _ask_together(job):
    aio = pytest.importorskip("tritonclient.http.aio")
    async with aio.InferenceServerClient(job.url.removeprefix("http://")) as client:
        asks = [client.infer(**asked(aio, client, True), headers=headers(job)) for _ in range(32)]
        for result in await asyncio.gather(*asks):
            assert (result.as_numpy("y") == 2 * X).all()


def test_a_gateway_that_is_killed_changes_no_answer_and_comes_back(mpiexec, tmp_path):
    make(tmp_path)
    with Job(mpiexec, tmp_path) as job, mpiserve.connect(tmp_path / "endpoint.json") as session:
        assert job.url.startswith("unix:")
        twice = session.service("twice")
        assert (twice(X) == 2 * X).all()
        before = job.child()
        os.kill(before, signal.SIGKILL)
        # Clients that come meanwhile wait at the socket, which is the rank's.
        assert (twice(X) == 2 * X).all()
        assert job.child() != before
    assert job.done.returncode == 0
    assert set(right(2)) < set(lines(job.done.stdout))
    assert "signal 9" in job.done.stderr


@pytest.mark.takes_long
def test_a_stopped_gateway_does_not_delay_the_end(mpiexec, tmp_path):
    make(tmp_path)
    with Job(mpiexec, tmp_path) as job:
        with mpiserve.connect(tmp_path / "endpoint.json") as session:
            assert (session.service("twice")(X) == 2 * X).all()
        stopped = job.child()
        os.kill(stopped, signal.SIGSTOP)
    assert job.done.returncode == 0
    assert set(right(2)) < set(lines(job.done.stdout))
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)


@pytest.mark.every_mpi
@pytest.mark.takes_long
@pytest.mark.skipif(is_mpich(), reason="MPICH 5 kills all when one dies")
def test_the_rank_of_a_gateway_may_die_where_the_launcher_lets_others_live(mpiexec, tmp_path):
    make(tmp_path)
    args = ["--with-ft", "ulfm", "-n", 4, *RUN, "c.toml", "sim.py"]
    with Job(mpiexec, tmp_path, args) as job:
        with mpiserve.connect(tmp_path / "endpoint.json") as session:
            assert (session.service("twice")(X) == 2 * X).all()
        child = job.child()
        os.kill(json.loads((tmp_path / "endpoint.json").read_text())["pid"], signal.SIGKILL)
        until_true(lambda: not Path(f"/proc/{child}").exists())
    assert job.done.returncode == 0
    assert set(right(2)) < set(lines(job.done.stdout))
    assert "gateway rank 3 (pid" in job.done.stderr


@pytest.mark.takes_long
def test_three_programs_and_the_same_without_the_gateway(mpiexec, tmp_path):
    make(tmp_path)
    programs = ["-n", 2, PYTHON, "sim.py", ":", "-n", 1, *SERVE, "c.toml"]
    gateway = [":", "-n", 1, PYTHON, "-m", "mpiserve", "gateway", "c.toml"]
    with (
        Job(mpiexec, tmp_path, [*programs, *gateway]) as job,
        mpiserve.connect(tmp_path / "endpoint.json") as session,
    ):
        assert (session.service("twice")(X) == 2 * X).all()
    assert job.done.returncode == 0
    assert set(right(2)) < set(lines(job.done.stdout))
    done = mpiexec(programs)
    assert done.returncode == 0 and lines(done.stdout) == right(2)


@pytest.mark.takes_long
def test_a_gateway_that_cannot_listen_is_an_error_line_and_no_more(mpiexec, tmp_path):
    make(tmp_path, '\n[gateway]\naddress = "unix:c.toml"\n')
    (tmp_path / "stop").touch()
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 0 and lines(done.stdout) == right(2)
    assert "there is no gateway: the gateway cannot listen at" in done.stderr


# ---- the same script inside and outside

SCRIPT = """
import sys
import time
import mpiserve
import numpy as np

def work(session):
    twice = session.service("twice")
    x = np.arange(300, dtype=np.float32).reshape(100, 3) / 7
    requests = [twice.submit(x[: i + 1]) for i in range(8)]
    said = [repr(twice(x).sum()), repr([request.result().sum() for request in requests])]
    for wrong in (x.astype(np.float64), x[:, :2], x[0], [x, x]):
        try:
            twice(*wrong) if isinstance(wrong, list) else twice(wrong)
        except mpiserve.Error as error:
            said.append(f"{type(error).__name__} {error.code.name}")
    try:
        session.service("thrice")
    except mpiserve.Error as error:
        said.append(type(error).__name__)
    try:
        twice(x * np.nan)
    except mpiserve.Error as error:
        said.append(f"{type(error).__name__} {'no numbers' in str(error)}")
    try:
        twice.submit(x, deadline=0).result()
    except mpiserve.Error as error:
        said.append(type(error).__name__)
    return said
"""
INSIDE = """
from pathlib import Path
import time
from script import work
with mpiserve.open() as session:
    print(*work(session), sep="\\n", flush=True)
    while not Path("stop").exists():
        time.sleep(0.02)
"""
PICKY = """
import numpy as np
def twice(x):
    if np.isnan(x).any():
        raise ValueError("no numbers")
    return 2 * x
"""


@pytest.mark.takes_long
def test_a_script_gives_the_same_inside_and_outside(mpiexec, tmp_path, monkeypatch):
    make(tmp_path, sim="import mpiserve" + INSIDE)
    (tmp_path / "model.py").write_text(PICKY)
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "script", raising=False)
    from script import work

    with (
        Job(mpiexec, tmp_path, ["-n", 3, *RUN, "c.toml", "sim.py"]) as job,
        mpiserve.connect(tmp_path / "endpoint.json") as session,
    ):
        outside = work(session)
    assert job.done.returncode == 0
    inside = [line for line in job.done.stdout.splitlines() if "endpoint" not in line]
    assert outside == inside and len(inside) == 9, (outside, inside)


# ---- another job

REMOTE = """
[service.twice]
backend = "remote"
model = "twice"
options = {{ url = "{url}", token_file = "token" }}
inputs = [{{ name = "x", dtype = "float32", shape = [-1, 3] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, 3] }}]
"""


@pytest.mark.takes_long
def test_another_job_has_this_one_answer(mpiexec, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    make(first)
    with Job(mpiexec, first) as job:
        write(second, config=REMOTE.format(url=job.url))
        (second / "token").write_text(job.token)
        (second / "token").chmod(0o600)
        done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=40, cwd=second)
    assert done.returncode == 0 and lines(done.stdout) == right(2)
    assert job.done.returncode == 0


# ---- merging

SLOW = """
import time
def twice(x):
    time.sleep(1.5 if x.max() > 1000 else 0.05)
    return 2 * x
"""


@pytest.mark.takes_long
def test_many_clients_make_few_batches_and_the_last_one_gets_its_answer(mpiexec, tmp_path):
    make(tmp_path, sim="import mpiserve" + INSIDE.replace("print(*work(session)", "print(end=''"))
    (tmp_path / "model.py").write_text(SLOW)
    (tmp_path / "script.py").write_text("work = None")
    with (
        Job(mpiexec, tmp_path, ["-n", 3, *RUN, "c.toml", "sim.py"]) as job,
        mpiserve.connect(tmp_path / "endpoint.json", connections=32) as session,
    ):
        requests = [session.service("twice").submit(X[:1] + i) for i in range(32)]
        for i, request in enumerate(requests):
            assert (request.result() == 2 * (X[:1] + i)).all()
        table = session.ask("/v2/models/twice/stats").data
        last = session.service("twice").submit(X + 2000)
        time.sleep(0.2)
        (tmp_path / "stop").touch()  # the simulation ends meanwhile
        assert (last.result() == 2 * (X + 2000)).all()
    assert job.done.returncode == 0
    (stats,) = json.loads(table)["model_stats"]
    assert stats["inference_count"] == 32
    assert stats["execution_count"] <= 16, stats
