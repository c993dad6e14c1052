"""A job whose gateway knows several clients, by TLS."""

from __future__ import annotations

import numpy as np
import pytest
from certificates import made
from coupling import RUN, lines, right
from gateway_job import Job, make

import mpiserve
from mpiserve.errors import ArgumentError, QueueFullError

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson", "urllib3"):
    pytest.importorskip(package)

GATEWAY = """
[gateway]
address = "127.0.0.1:0"
endpoint_file = "endpoint.json"
access_log = "access.log"
tokens_file = "tokens.toml"
tls_certificate = "cert.pem"
tls_key = "key.pem"
"""
OTHER = """
[service.other]
backend = "echo"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 3] }]
"""
ALICE, SLOW = ("a" * 40, "s" * 40)
TOKENS = f"""
[alice]
token = "{ALICE}"
services = ["twice"]
[slow]
token = "{SLOW}"
rate = 0.001
burst = 4
"""
X = np.arange(12, dtype=np.float32).reshape(4, 3)


def tokens(folder, mode=0o600):
    (folder / "tokens.toml").write_text(TOKENS)
    (folder / "tokens.toml").chmod(mode)


@pytest.mark.takes_long
def test_each_client_has_its_services_and_its_rate(mpiexec, tmp_path):
    cert = str(made(tmp_path))
    tokens(tmp_path)
    make(tmp_path, GATEWAY + OTHER)
    with Job(mpiexec, tmp_path, ["-n", 5, *RUN, "c.toml", "sim.py"]) as job:
        assert job.url.startswith("https://")
        with mpiserve.connect(job.url, job.token, ca_file=cert) as session:
            assert {service.name for service in session.services} == {"twice", "other"}
        with mpiserve.connect(job.url, ALICE, ca_file=cert) as session:
            assert [service.name for service in session.services] == ["twice"]
            assert (session.service("twice")(X) == 2 * X).all()
            with pytest.raises(ArgumentError, match="change = true"):
                session.reload("twice")
        with mpiserve.connect(job.url, SLOW, ca_file=cert) as session:  # the list is 1 request
            for _ in range(2):  # 1 of them, and 1 for the signature
                assert (session.service("other")(X) == X).all()
            with pytest.raises(QueueFullError, match=r"0\.001 requests a second"):
                session.service("other")(X)
    assert job.done.returncode == 0
    assert set(right(2)) < set(lines(job.done.stdout))
    log = (tmp_path / "access.log").read_text()
    assert " alice\n" in log and " slow\n" in log and " 429 " in log
    for token in (ALICE, SLOW, job.token):
        assert token not in log + job.done.stdout + job.done.stderr


@pytest.mark.takes_long
def test_a_file_that_others_can_read_costs_the_gateway_alone(mpiexec, tmp_path):
    made(tmp_path)
    tokens(tmp_path, mode=0o644)
    make(tmp_path, GATEWAY)
    (tmp_path / "stop").touch()
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 0 and lines(done.stdout) == right(2)
    assert "there is no gateway" in done.stderr and "chmod 600" in done.stderr
    assert ALICE not in done.stdout + done.stderr
