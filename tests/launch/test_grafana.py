"""Each query of the dashboard is answered by Prometheus, which scrapes a running job."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from coupling import RUN, write

DASHBOARD = Path(__file__).parents[2] / "tools/grafana.json"
MISSING = "Debian's prometheus is not installed: apt-get install prometheus"
TOKEN = "0123456789abcdef0123456789abcdef"

SIMULATION = """\
import time

import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    end = time.monotonic() + 8
    while time.monotonic() < end:
        session.step()
        twice(np.ones((2, 3), np.float32))
        time.sleep(0.001)
    open("end", "w").write(str(time.time()))
"""
# MPICH ends what a rank has started with its job, also what has not written yet.
UNTIL_SEEN = SIMULATION.replace("import time", "import glob\nimport time").replace(
    "time.monotonic() < end", "time.monotonic() < end + 20 and not glob.glob('seen/*.prom')"
)
CONFIG = """\
global: {{ scrape_interval: 1s }}
scrape_configs:
  - job_name: mpiserve
    authorization: {{ credentials_file: {token} }}
    static_configs: [{{ targets: ["127.0.0.1:{port}"] }}]
"""


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


@contextmanager
def started(*command: object) -> Iterator[None]:
    with subprocess.Popen([str(word) for word in command]) as process:
        try:
            yield
        finally:
            process.kill()


def ask(port: int, query: str, when: float) -> list:
    words = urllib.parse.urlencode({"query": query, "time": when})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{words}") as answer:
        found = json.load(answer)
    assert found["status"] == "success", query
    return found["data"]["result"]


def queries() -> list[str]:
    """Those of the dashboard, as Grafana sends them."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    texts = [target["expr"] for panel in panels for target in panel["targets"]]
    return [text.replace("$__rate_interval", "30s").replace("$run", ".*") for text in texts]


def wait_for_scrapes(port: int) -> None:
    """Until some have been taken of the job, so that there are rates."""
    for _ in range(300):
        try:
            if ask(port, "sum(count_over_time(mpiserve_up[1m])) > 12", time.time()):
                return
        except OSError:  # it has just started
            pass
        time.sleep(0.1)
    raise AssertionError("prometheus has scraped no job")


@pytest.mark.takes_long
@pytest.mark.timeout(90)
@pytest.mark.skipif(not shutil.which("prometheus"), reason=MISSING)
def test_each_query_of_the_dashboard_is_answered(mpiexec, tmp_path):
    write(tmp_path, SIMULATION)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    scraped, own = free_port(), free_port()
    config = CONFIG.format(token=tmp_path / "token", port=scraped)
    (tmp_path / "prometheus.yml").write_text(config)
    program = (sys.executable, "-P", "-m", "mpiserve", "metrics", f"--port={scraped}")
    prometheus = ("prometheus", f"--config.file={tmp_path}/prometheus.yml")
    prometheus += (f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{own}")
    with started(*program, f"--token-file={tmp_path}/token"), started(*prometheus):
        done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"], env={"MPISERVE_METRICS": "on"})
        assert done.returncode == 0
        wait_for_scrapes(own)
        end = float((tmp_path / "end").read_text())  # later the job is not there
        unanswered = [query for query in queries() if not ask(own, query, end)]
    assert not unanswered
    assert len(queries()) > 15


# Triton's names are those of Triton, which promtool would have named otherwise.
@pytest.mark.takes_long
@pytest.mark.skipif(not shutil.which("promtool"), reason=MISSING)
def test_promtool_accepts_the_metrics(mpiexec, tmp_path):
    write(tmp_path, UNTIL_SEEN)
    folder = tmp_path / "seen"
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env={"MPISERVE_METRICS": str(folder)})
    assert done.returncode == 0
    for _ in range(100):
        if any("mpiserve_up{" in file.read_text() for file in folder.glob("*.prom")):
            break
        time.sleep(0.1)
    (file,) = folder.glob("*.prom")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=file.read_text(), capture_output=True, text=True
    )
    said = (checked.stdout + checked.stderr).splitlines()
    assert checked.returncode in (0, 3), said  # 3: it would have named some otherwise
    assert [line for line in said if not line.startswith("nv_inference_")] == []
