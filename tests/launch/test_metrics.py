"""What other programs see of a job while it runs, and what is left of it when it has ended."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from coupling import RUN, write
from prometheus_client.parser import text_string_to_metric_families as parsed

WATCHED = """\
import subprocess
import sys
from pathlib import Path

import mpiserve
import numpy as np

def seen(*words):
    command = [sys.executable, "-P", "-m", "mpiserve", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

with mpiserve.open() as session:
    rank, twice = session.comm.rank, session.service("twice")
    x = np.ones((2, 3), np.float32)
    if rank == 0:
        for _ in range(25):
            twice(x)
        Path("top.json").write_text(seen("top", "--once", "--json", "--every", "0.3"))
        Path("top.txt").write_text(seen("top", "--once", "--every", "0.3"))
        Path("metrics.txt").write_text(seen("metrics"))
        Path("stop").touch()
    else:
        while not Path("stop").exists():
            twice(x)
    session.comm.Barrier()
    counters = session.info()["counters"]
    Path(f"count.{rank}").write_text(str(counters["requests"]))
"""

DIES = """\
import os
import signal

import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    for _ in range(7):
        twice(np.ones((2, 3), np.float32))
    session.comm.Barrier()
    if session.comm.rank == 0:
        while not list(os.scandir("seen")):
            twice(np.ones((2, 3), np.float32))
    session.comm.Barrier()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def name_of(name: str) -> str:
    """As it is in the text: this parser calls Triton's counters as it would."""
    return name.removesuffix("_total") if name.startswith("nv_") else name


def samples(text: str) -> dict:
    return {
        (name_of(sample.name), frozenset(sample.labels.items())): sample.value
        for family in parsed(text)
        for sample in family.samples
    }


def total(known: dict, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (one, has), value in known.items() if one == name and wanted <= has)


def last_file(folder: Path) -> dict:
    """What the process that writes it has written when the ranks have ended."""
    for _ in range(200):
        known = [samples(file.read_text()) for file in folder.glob("*.prom")]
        if known and not total(known[0], "mpiserve_up"):
            return known[0]
        time.sleep(0.1)
    raise AssertionError(f"{list(folder.iterdir())}: no file says that the ranks have ended")


def test_a_running_job_is_seen_by_other_programs(mpiexec, tmp_path):
    write(tmp_path, WATCHED)
    folder = tmp_path / "seen"
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"], env={"MPISERVE_METRICS": str(folder)})
    assert done.returncode == 0
    seen = json.loads((tmp_path / "top.json").read_text())
    (file,) = folder.glob("*.prom")
    (job,) = [job for job in seen["jobs"] if job["run"] in file.name]
    assert job["ranks"] == job["ranks_here"] == 4 and job["measured"]
    (service,) = job["services"]
    assert service["name"] == "twice" and service["requests_per_s"] > 0
    assert service["replicas"][0]["state"] in ("ready", "busy")
    assert service["response"]["count"] > 0 and service["response"]["p99"] > 0
    assert [one["rank"] for one in job["simulation"]] == [0, 1, 2]
    assert f"job {job['run']}: twice/0" in (tmp_path / "top.txt").read_text()
    during = samples((tmp_path / "metrics.txt").read_text())
    assert total(during, "mpiserve_client_requests_total", rank="0", run=job["run"]) == 25

    known = last_file(folder)
    for rank in range(3):
        count = int((tmp_path / f"count.{rank}").read_text())
        assert total(known, "mpiserve_client_requests_total", rank=str(rank)) == count
        assert total(known, "mpiserve_response_seconds_count", rank=str(rank)) == count
    every = total(known, "mpiserve_client_requests_total")
    assert total(known, "nv_inference_request_success", model="twice") == every
    assert total(known, "nv_inference_count", model="twice") == 2 * every
    batches = total(known, "nv_inference_exec_count")
    assert batches == total(known, "mpiserve_inference_seconds_count") > 0
    assert total(known, "mpiserve_bootstrap_seconds_count") == 1


@pytest.mark.takes_long
def test_the_last_numbers_of_a_job_that_was_killed_are_written(mpiexec, tmp_path):
    write(tmp_path, DIES)
    folder = tmp_path / "seen"
    folder.mkdir()
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env={"MPISERVE_METRICS": str(folder)})
    assert done.returncode != 0
    known = last_file(folder)
    assert total(known, "mpiserve_client_requests_total", rank="1") == 7
    assert total(known, "mpiserve_client_requests_total", rank="0") >= 7


def test_metrics_that_cannot_be_written_do_not_end_a_job(mpiexec, tmp_path):
    write(tmp_path)
    (tmp_path / "file").touch()
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], env={"MPISERVE_METRICS": "file/folder"})
    assert done.returncode == 0
    assert "there will be no metrics of this node" in done.stderr
