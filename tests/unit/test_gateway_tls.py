"""HTTP and gRPC with TLS, by one certificate: the clients as they are."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import time
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
from certificates import made
from gateway_rank import Rank

import mpiserve
from mpiserve.errors import Error, PeerError

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson", "hpack"):
    pytest.importorskip(package)
triton = pytest.importorskip("tritonclient.grpc")
http_client = pytest.importorskip("tritonclient.http.aio")

X = np.arange(6, dtype=np.float32).reshape(2, 3)
LIMIT = 0.5


@contextmanager
def encrypting(folder, **settings):
    """A gateway whose two ports speak TLS."""
    files = {"tls_certificate": "cert.pem", "tls_key": "key.pem"}
    address = {"address": "127.0.0.1:0", "grpc_address": "127.0.0.1:0"}
    cert = made(folder)
    with Rank(folder, **files, **address, **settings) as started:
        started.cert, started.folder = cert, folder
        yield started
    assert started.status == 0


@pytest.fixture(scope="module")
def rank(tmp_path_factory):
    with encrypting(tmp_path_factory.mktemp("tls"), head_timeout_s=LIMIT) as started:
        yield started


def headers(rank):
    return {"authorization": f"Bearer {rank.endpoint.token}"}


def asked(module):
    x = module.InferInput("x", X.shape, "FP32")
    x.set_data_from_numpy(X)
    return [x]


def encrypted(rank, **more):
    trusted = {"root_certificates": str(rank.cert)} | more
    return triton.InferenceServerClient(rank.endpoint.grpc.url, ssl=True, **trusted)


def test_tritonclient_by_grpc(rank):
    with encrypted(rank) as client:
        assert client.is_server_live()
        y = client.infer("float32", asked(triton), headers=headers(rank)).as_numpy("y")
    assert (y == 2 * X).all()


@pytest.mark.takes_long
def test_large_messages_by_grpc(rank):
    x = np.ones((64, 3), np.float32)
    one = triton.InferInput("x", x.shape, "FP32")
    one.set_data_from_numpy(x)
    with encrypted(rank) as client:
        for _ in range(20):
            y = client.infer("float32", [one], headers=headers(rank)).as_numpy("y")
            assert (y == 2).all()


def test_tritonclient_by_http(rank):
    async def ask():
        context = ssl.create_default_context(cafile=str(rank.cert))
        url = rank.endpoint.url.removeprefix("https://")
        async with http_client.InferenceServerClient(url, ssl=True, ssl_context=context) as client:
            return await client.infer("float32", asked(http_client), headers=headers(rank))

    assert rank.endpoint.url.startswith("https://127.0.0.1:")
    assert (asyncio.run(ask()).as_numpy("y") == 2 * X).all()


def test_the_interface_of_a_session(rank):
    token = rank.endpoint.token
    with mpiserve.connect(rank.endpoint.url, token, ca_file=str(rank.cert)) as session:
        assert (session.service("float32")(X) == 2 * X).all()
    with pytest.raises(PeerError):  # nobody it trusts has signed the certificate
        mpiserve.connect(rank.endpoint.url, token)


@pytest.mark.takes_long
def test_who_trusts_nobody_or_speaks_no_tls_gets_nothing(rank, tmp_path):
    other = made(tmp_path)
    with encrypted(rank, root_certificates=str(other)) as client:
        assert not _is_live(client)
    with triton.InferenceServerClient(rank.endpoint.grpc.url) as client:
        assert not _is_live(client)
    plain = "http://" + rank.endpoint.url.removeprefix("https://")
    with pytest.raises(Error):
        mpiserve.connect(plain, rank.endpoint.token)
    test_tritonclient_by_grpc(rank)


def _is_live(client):
    try:
        return client.is_server_live(client_timeout=0.3)
    except triton.InferenceServerException as error:
        assert error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
        return False


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_who_begins_no_tls_is_let_go(rank, protocol):
    with reached(rank, protocol) as silent:
        assert ended(silent)


def ended(connection):
    """Wait until the other side ends a connection, in whatever way."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A gateway where an answer must be taken soon."""
    with encrypting(tmp_path_factory.mktemp("quick"), body_timeout_s=LIMIT) as started:
        yield started


@pytest.mark.parametrize("says_goodbye", [False, True])
def test_who_does_not_read_is_let_go(quick, says_goodbye):
    """What TLS has encrypted waits elsewhere than what it has not."""
    context = ssl.create_default_context(cafile=str(quick.cert))
    ask = (
        f"GET /v2/models/stats HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {quick.endpoint.token}"
    )
    raw = reached(quick, "http")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as client:
        for _ in range(90):
            client.sendall(f"{ask}\r\n\r\n".encode())
        client.sendall(f"{ask}\r\nconnection: close\r\n\r\n".encode())
        if says_goodbye:
            client.setblocking(False)
            with suppress(ssl.SSLError):  # it does not wait for an answer
                client.unwrap()
        end = time.monotonic() + 20
        while connections(quick, "http") > 1:  # that which asks is one
            assert time.monotonic() < end
            time.sleep(0.05)


MOST = 8


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A gateway of few connections, which are never closed for their time."""
    limits = {"connections": MOST, "head_timeout_s": 600}
    with encrypting(tmp_path_factory.mktemp("small"), **limits) as started:
        yield started


def reached(rank, protocol):
    url = rank.endpoint.url if protocol == "http" else rank.endpoint.grpc.url
    host, port = url.removeprefix("https://").split(":")
    return socket.create_connection((host, int(port)), 20)


def connections(rank, protocol):
    """Ask until there is room, and return how many connections there are."""
    end = time.monotonic() + 20
    while True:
        try:
            with mpiserve.connect(
                rank.endpoint.url, rank.endpoint.token, ca_file=str(rank.cert)
            ) as session:
                text = bytes(session.ask("/metrics").data).decode()
        except Error:
            assert time.monotonic() < end
            time.sleep(0.05)
            continue
        kind = f'protocol="{protocol}"'
        lines = [line for line in text.splitlines() if "gateway_connections{" in line]
        return int(float(next(line for line in lines if kind in line).split()[-1]))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_who_has_not_ended_the_handshake_counts(small, protocol):
    """Those of one protocol leave the other one alone; those that have gone leave no trace."""
    with ExitStack() as stack:
        silent = [stack.enter_context(reached(small, protocol)) for _ in range(3 * MOST)]
        sent_away, end = set(), time.monotonic() + 20
        while len(sent_away) < 2 * MOST and time.monotonic() < end:
            sent_away.update(select.select([s for s in silent if s not in sent_away], [], [], 1)[0])
        assert len(sent_away) == 2 * MOST
        assert not select.select([s for s in silent if s not in sent_away], [], [], 0.3)[0]
        if protocol == "grpc":
            assert connections(small, "grpc") == MOST
    until = time.monotonic() + 20
    while (left := connections(small, protocol)) > (protocol == "http"):
        assert time.monotonic() < until, left
    if protocol == "grpc":
        test_tritonclient_by_grpc(small)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_who_fails_at_the_handshake_leaves_no_trace(small, protocol):
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello") * MOST:
        with reached(small, protocol) as one:
            one.sendall(data)
            if data:
                assert ended(one)
    until = time.monotonic() + 20
    while (left := connections(small, protocol)) > (protocol == "http"):
        assert time.monotonic() < until, left


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_old_versions_of_tls_are_refused(rank, protocol):
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with reached(rank, protocol) as plain, pytest.raises(OSError):
        old.wrap_socket(plain)


@pytest.mark.takes_long
def test_a_socket_beside_a_port_has_no_tls(tmp_path):
    made(tmp_path)
    files = {"tls_certificate": "cert.pem", "tls_key": "key.pem"}
    with Rank(tmp_path, **files, grpc_address="127.0.0.1:0") as rank:
        rank.cert = tmp_path / "cert.pem"
        with mpiserve.connect(rank.endpoint.url, rank.endpoint.token) as session:
            assert (session.service("float32")(X) == 2 * X).all()
        test_tritonclient_by_grpc(rank)
