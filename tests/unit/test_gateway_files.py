"""The files of the table [gateway]: tokens of clients, and certificates."""

from __future__ import annotations

import os
import ssl

import pytest
from certificates import made

from mpiserve.config import Config
from mpiserve.config.gateway import GatewayConfig
from mpiserve.config.gateway_files import TokenEntry, check_files, read_tokens, tls_context
from mpiserve.errors import ConfigError
from mpiserve.launch.static_check import findings

TOKEN = "secret-" + 40 * "x"
SERVICES = ("chemistry", "turbulence")


def write(folder, text, mode=0o600):
    path = folder / "tokens.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_tokens_have_rates_services_and_the_right_to_change(tmp_path):
    text = f"""
    [alice]
    token = "{TOKEN}"
    [bob]
    token = "{TOKEN}b"
    rate = 2.5
    services = ["chemistry"]
    [operator]
    token = "{TOKEN}o"
    rate = 1
    burst = 20
    change = true
    """
    assert read_tokens(write(tmp_path, text), SERVICES) == [
        TokenEntry("alice", TOKEN),
        TokenEntry("bob", TOKEN + "b", 2.5, 3, ("chemistry",)),
        TokenEntry("operator", TOKEN + "o", 1.0, 20, None, True),
    ]


@pytest.mark.parametrize(
    "text, word",
    [
        ("[a]", "a.token: must be 32"),
        ("[a]\ntoken = 3", "a.token: must be 32"),
        (f'[a]\ntoken = "{TOKEN[:31]}"', "a.token: must be 32"),
        (f'[a]\ntoken = "{TOKEN} {TOKEN}"', "a.token: must be 32"),
        (f'[a]\ntoken = "{TOKEN}é"', "a.token: must be 32"),
        (f"[a]\ntoken = {TOKEN}", "is no TOML"),
        (f'a = "{TOKEN}"', "a: must be a table"),
        (f'[job]\ntoken = "{TOKEN}"', "and not 'job'"),
        (f'["a b"]\ntoken = "{TOKEN}"', "a name is 1 to 31 letters"),
        (f'[-]\ntoken = "{TOKEN}"', "not 'job' or '-'"),
        (f'["{TOKEN}"]\ntoken = "{TOKEN}"', "table 1: a name is"),
        (f'"{TOKEN}" = 3', "table 1: a name is"),
        (f'[a]\n"{TOKEN}" = 3', "unknown key (long"),
        (f'[a]\ntoken = "{TOKEN}"\nservices = ["{TOKEN}"]', "no service (long"),
        (f'[a]\ntoken = "{TOKEN}"\nservices = [["{TOKEN}"]]', "no service (long"),
        (f'[a]\ntoken = "{TOKEN}"\nrates = 3', "unknown key 'rates' (did you mean 'rate'?)"),
        (f'[a]\ntoken = "{TOKEN}"\nrate = 0', "a.rate: must be 1e-06 to"),
        (f'[a]\ntoken = "{TOKEN}"\nrate = nan', "a.rate: must be 1e-06 to"),
        (f'[a]\ntoken = "{TOKEN}"\nrate = true', "a.rate: must be 1e-06 to"),
        (f'[a]\ntoken = "{TOKEN}"\nrate = 5e-324', "a.rate: must be 1e-06 to"),
        (f'[a]\ntoken = "{TOKEN}"\nburst = 3', "beside a rate"),
        (f'[a]\ntoken = "{TOKEN}"\nrate = 1\nburst = 0', "a.burst"),
        (f'[a]\ntoken = "{TOKEN}"\nchange = 1', "a.change: must be true"),
        (f'[a]\ntoken = "{TOKEN}"\nservices = []', "a.services: must be a list"),
        (f'[a]\ntoken = "{TOKEN}"\nservices = [1]', "no service 1"),
        (f'[a]\ntoken = "{TOKEN}"\nservices = ["chemisty"]', "did you mean 'chemistry'?"),
        (f'[a]\ntoken = "{TOKEN}"\n[b]\ntoken = "{TOKEN}"', "a and b have the same token"),
        ("".join(f"[a{i}]\n" for i in range(1001)), "has 1001 tokens; 1000 at most"),
        ("x" * (1 << 20) + "=1", "larger than"),
    ],
)
def test_a_wrong_file_is_named_and_no_token_told(tmp_path, text, word):
    with pytest.raises(ConfigError) as error:
        read_tokens(write(tmp_path, text), SERVICES)
    said = str(error.value)
    assert word in said and "tokens.toml" in said and TOKEN[:20] not in said


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    path = write(tmp_path, f'[a]\ntoken = "{TOKEN}"', mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        read_tokens(path, SERVICES)


def test_a_file_that_is_not_there_is_found_by_check(tmp_path):
    tensor = {"name": "x", "dtype": "float32", "shape": [-1, 2]}
    service = {"backend": "echo", "inputs": [tensor], "outputs": [tensor | {"name": "y"}]}
    tables = {"service": {"s": service}, "gateway": {"tokens_file": "tokens.toml"}}
    found = findings(Config.from_dict(tables, folder=tmp_path))
    assert [finding.key for finding in found] == ["gateway"]
    assert "No such file" in found[0].text and found[0].sure
    write(tmp_path, f'[a]\ntoken = "{TOKEN}"')
    assert findings(Config.from_dict(tables, folder=tmp_path)) == []


@pytest.fixture
def pair(tmp_path):
    made(tmp_path)
    return {"tls_certificate": "cert.pem", "tls_key": "key.pem", "address": "127.0.0.1:0"}


def test_a_certificate_is_read_before_clients_come(tmp_path, pair):
    assert check_files(GatewayConfig(**pair), tmp_path, SERVICES) == []
    for wrong in ({"tls_key": "cert.pem"}, {"tls_certificate": "none.pem"}):
        with pytest.raises(ConfigError, match="tls_certificate and tls_key"):
            check_files(GatewayConfig(**pair | wrong), tmp_path, SERVICES)


def test_a_key_that_others_can_read_is_refused(tmp_path, pair):
    (tmp_path / "key.pem").chmod(0o640)
    with pytest.raises(ConfigError, match=f"chmod 600 {tmp_path / 'key.pem'}"):
        check_files(GatewayConfig(**pair), tmp_path, SERVICES)


def test_a_server_wants_tls_of_1_2_at_least(tmp_path, pair):
    context = tls_context(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_key_with_a_password_is_refused_without_asking(tmp_path, pair):
    made(tmp_path, "-passout", "pass:secret")
    assert b"ENCRYPTED" in (tmp_path / "key.pem").read_bytes()
    with pytest.raises(ConfigError, match="no password"):
        check_files(GatewayConfig(**pair), tmp_path, SERVICES)


def test_a_certificate_needs_a_port():
    files = {"tls_certificate": "c", "tls_key": "k"}
    with pytest.raises(ValueError, match="addresses with a port"):
        GatewayConfig(**files, grpc_address="unix")
    assert GatewayConfig(**files, grpc_address=f"127.0.0.1:{os.getpid() % 1000}")
