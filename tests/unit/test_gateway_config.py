"""The table [gateway], where its rank is, and where its clients find it."""

from __future__ import annotations

import json
import os
import socket
import stat

import pytest

from mpiserve.config import Config
from mpiserve.config.gateway import GatewayConfig, parsed
from mpiserve.config.partition import GATEWAY, INFERENCE, SIMULATION, roles
from mpiserve.errors import ArgumentError, ConfigError, Error
from mpiserve.gateway.endpoint import Endpoint, read_file
from mpiserve.launch import jobscript
from mpiserve.launch.plan import plan

X = {"name": "x", "dtype": "float32", "shape": [-1, 2]}


def config(gateway=None, **partition):
    service = {"backend": "echo", "inputs": [X], "outputs": [X | {"name": "y"}]}
    tables = {"service": {"s": service}, "gateway": gateway or {}}
    return Config.from_dict(tables | ({"partition": partition} if partition else {}))


@pytest.mark.parametrize(
    "address, url",
    [
        ("unix:/tmp/x", ("/tmp/x", "", 0)),
        ("127.0.0.1:80", ("", "127.0.0.1", 80)),
        ("localhost:0", ("", "127.0.0.1", 0)),
        ("[::1]:80", ("", "::1", 80)),
    ],
)
def test_addresses(address, url):
    assert parsed(address) == url and parsed(address).is_private


@pytest.mark.parametrize(
    "table, text",
    [
        ({"address": "unix:"}, "1 to 107 bytes"),
        ({"address": "unix:/" + "x" * 107}, "1 to 107 bytes"),
        ({"address": "127.0.0.1"}, "neither"),
        ({"address": "127.0.0.1:99999"}, "neither"),
        ({"address": "host:80"}, "number of an interface"),
        ({"address": "0.0.0.0:80"}, "insecure = true"),
        ({"tls_key": "key"}, "belong together"),
        ({"port": 80}, "unknown key"),
        ({"connections": 0}, "connections"),
    ],
)
def test_wrong_tables_name_the_key(table, text):
    with pytest.raises(ConfigError, match="gateway") as error:
        config(table)
    assert text in str(error.value)


def test_another_interface_needs_tls_or_a_clear_word():
    assert config({"address": "0.0.0.0:80", "insecure": True}).gateway
    assert config({"address": "0.0.0.0:80", "tls_certificate": "c", "tls_key": "k"}).gateway


@pytest.mark.parametrize("placement", [{}, {"placement": "per-node"}, {"ranks": [0]}])
def test_the_last_rank_is_the_gateway(placement):
    found = roles(config(**placement), 5, [0] * 5)
    assert found[-1] == GATEWAY and found.count(GATEWAY) == 1
    assert found.count(INFERENCE) == 1 and found.count(SIMULATION) == 3


def test_a_world_that_is_too_small_says_so():
    for size in (1, 2):
        with pytest.raises(ConfigError, match="beside a gateway and a simulation rank"):
            roles(config(), size)
    assert roles(config(), 3) == [SIMULATION, INFERENCE, GATEWAY]


def test_plans_and_job_scripts_have_the_gateway():
    made = plan(config(), 4)
    assert made.ranks(GATEWAY) == [3]
    job = jobscript.Job("c.toml", ["./sim"], made, "openmpi")
    assert "-n 1 " + jobscript.GUESTS[GATEWAY] in jobscript.jobscript("mpirun", job)
    with pytest.raises(ArgumentError, match="gateway"):
        jobscript.jobscript("slurm", job)


# ---- the endpoint


def test_by_default_nobody_else_can_enter(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made = Endpoint(GatewayConfig(), tmp_path)
    path = made.url.removeprefix("unix:")
    folder = os.path.dirname(path)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(made.file.stat().st_mode) == 0o600
    assert read_file(made.file) == {"url": made.url, "token": made.token}
    assert len(made.token) >= 43
    made.close()
    assert not os.path.exists(folder)


def test_a_file_that_others_can_read_is_written_anew(tmp_path):
    file = tmp_path / "e.json"
    file.write_text("{}")
    file.chmod(0o644)
    made = Endpoint(GatewayConfig(address="127.0.0.1:0", endpoint_file="e.json"), tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert made.url.startswith("http://127.0.0.1:")
    assert json.loads(file.read_text())["token"] == made.token
    made.close()
    assert not file.exists()


def test_the_socket_of_a_gateway_that_was_killed_is_taken_over(tmp_path):
    table = GatewayConfig(address="unix:s")
    first = socket.socket(socket.AF_UNIX)
    first.bind(str(tmp_path / "s"))
    first.close()
    made = Endpoint(table, tmp_path)
    with pytest.raises(Error, match="another program listens there"):
        Endpoint(table, tmp_path)
    made.close()
    (tmp_path / "s").write_text("mine")
    with pytest.raises(Error, match="a file of this name"):
        Endpoint(table, tmp_path)
    assert (tmp_path / "s").read_text() == "mine"


def test_endpoint_files_of_others_are_refused(tmp_path):
    file = tmp_path / "e.json"
    with pytest.raises(Error, match="no endpoint file"):
        read_file(file)
    file.write_text("{}")
    with pytest.raises(Error, match="chmod 600"):
        read_file(file)
    file.chmod(0o600)
    with pytest.raises(Error, match="no endpoint file"):
        read_file(file)
