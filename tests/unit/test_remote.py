"""The backend "remote", beside servers that fail in every way but one."""

from __future__ import annotations

import socket
import ssl
import threading
import time

import certificates
import numpy as np
import pytest
from inference_server import Server, hang_up, meet, say, start_again, take

from mpiserve import backends
from mpiserve.backends.remote.api import Message
from mpiserve.backends.remote.settings import Settings
from mpiserve.config import Config
from mpiserve.errors import ArgumentError, ModelError
from mpiserve.launch.static_check import findings

pytest.importorskip("urllib3")
X = {"name": "x", "dtype": "float32", "shape": [-1, 2]}
Y = X | {"name": "y"}
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def config(folder, urls, inputs=(X,), model="double", **options):
    table = {"backend": "remote", "model": model, "inputs": [*inputs], "outputs": [Y]}
    table["options"] = {"url": urls, "request_timeout_s": 5, "ready_timeout_s": 0} | options
    return Config.from_dict({"service": {"s": table}}, folder=folder)


@pytest.fixture
def load(tmp_path):
    made = []

    def loaded(*args, **options):
        backend = backends.create(config(tmp_path, *args, **options).services[0])
        made.append(backend)
        backend.load()
        return backend

    yield loaded
    for backend in made:
        backend.close()


@pytest.fixture
def server():
    with Server() as made:
        yield made


def closed_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{made.getsockname()[1]}"


def right(backend):
    return np.array_equal(backend.run((ROWS,))["y"], 2 * ROWS)


def all_of(steps, seconds=10):
    """The results of all requests of steps, by key."""
    results, end = {}, time.monotonic() + seconds
    while steps.busy and time.monotonic() < end:
        results |= steps.step()
    return results


@pytest.mark.parametrize(
    "fault", [hang_up, start_again, say(502), say(504), say(503, **{"Retry-After": "0"}), say(429)]
)
def test_a_request_is_repeated(load, server, fault):
    backend = load(server.url)
    assert right(backend)  # so that the connection is one that was kept
    server.faults = [fault]
    assert right(backend)
    assert server.seen >= 3


def test_a_server_is_given_the_time_that_it_asks_for(load, server):
    backend = load(server.url)
    server.faults = [say(503, **{"Retry-After": "1"})]
    begin = time.monotonic()
    assert right(backend)
    assert time.monotonic() - begin >= 1.0


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_an_error_of_the_request_is_not_repeated(load, server, status):
    backend = load(server.url)
    server.faults = [say(status)]
    with pytest.raises(ModelError, match=f"status {status}: said {status}"):
        backend.run((ROWS,))
    assert server.seen == 1


def test_a_request_ends_when_its_time_is_over(load, server):
    backend = load(server.url, request_timeout_s=0.3)
    server.faults = [take(3)]
    with pytest.raises(ModelError, match=r"no server has answered within 0.3 s: .*timed out"):
        backend.run((ROWS,))


def test_another_server_answers_for_one_that_is_gone(load):
    with Server() as second:
        with Server() as first:
            backend = load([first.url, second.url])
            assert right(backend)
        assert all(right(backend) for _ in range(4))
        assert second.seen >= 4


def test_a_server_that_comes_back_is_asked_again(load):
    with Server() as first:
        address = first.server_address
        backend = load(first.url)
    backend.steps.begin(1, 0, (ROWS,))
    time.sleep(0.3)
    with Server(address):
        assert np.array_equal(all_of(backend.steps)[1]["y"], 2 * ROWS)


def test_many_requests_are_under_way_at_once(load, server):
    backend = load(server.url, connections=16)
    server.faults = [meet(16)] * 16
    for key in range(16):
        assert backend.steps.room
        backend.steps.begin(key, 0, (ROWS + key,))
    assert not backend.steps.room
    results = all_of(backend.steps, seconds=30)
    assert server.most == 16
    assert all(np.array_equal(results[key]["y"], 2 * (ROWS + key)) for key in range(16))


def test_a_request_that_nobody_waits_for_is_not_repeated(load):
    with Server() as made:
        backend = load(made.url, request_timeout_s=60)
    backend.steps.begin(1, 0, (ROWS,))
    backend.steps.drop(1)
    assert not backend.steps.busy
    backend.steps._threads.shutdown(wait=True)  # which would take a minute


def test_a_socket_with_a_path(load, tmp_path):
    with Server(str(tmp_path / "socket")) as made:
        assert right(load(made.url))


def test_the_token_comes_from_a_file_or_a_variable(load, server, tmp_path, monkeypatch):
    server.token = "open sesame"
    file = tmp_path / "token"
    file.write_text("open sesame\n")
    file.chmod(0o600)
    assert right(load(server.url, token_file="token"))
    monkeypatch.setenv("OF_THE_SERVER", "open sesame")
    assert right(load(server.url, token_variable="OF_THE_SERVER"))
    with pytest.raises(ModelError, match="status 401: who are you"):
        load(server.url).run((ROWS,))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"model": "triple"}, "not ready|no such model"),
        ({"inputs": [X | {"name": "z"}]}, "no input 'z'; its inputs are x"),
        ({"inputs": [X | {"dtype": "float64"}]}, "float64 .* in the signature, and float32"),
        ({"inputs": [X | {"dtype": "complex64"}]}, "complex64, which the protocol does not have"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_at_load(load, server, table, text):
    with pytest.raises(ModelError, match=text):
        load(server.url, **table)


def test_a_server_that_is_not_there_is_named(load):
    url = closed_port()
    with pytest.raises(ModelError, match=f"no server is ready after 0 s: {url}: .*refused"):
        load(url)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": []}, "url: missing"),
        ({"url": "ftp://host"}, "url: 'ftp://host' begins with none of http://"),
        ({"api": "openai2"}, "api: unknown api 'openai2'"),
        ({"connections": 0}, "connections: 0 is not in 1 to 1024"),
        ({"connections": True}, "connections: True is no number"),
        ({"ca_file": "none.pem"}, "ca_file: .*none.pem: no such file"),
        ({"token_variable": "NOT_SET"}, "token_variable: the variable NOT_SET is not set"),
        ({"token_file": "open"}, "token_file: .*can be read by others"),
        ({"retries": 3}, "retries: unknown key"),
    ],
)
def test_a_wrong_option_is_named_before_a_job_runs(load, tmp_path, options, text):
    (tmp_path / "open").write_text("x")
    (tmp_path / "open").chmod(0o644)
    options = {"url": "http://localhost:1"} | options
    wrong = config(tmp_path, options.pop("url"), **options)
    assert any(finding.sure for finding in findings(wrong))
    with pytest.raises(ArgumentError, match=text):
        load(wrong.services[0].options["url"], **options)


@pytest.mark.parametrize("scheme", ["unix", "http", "https"])
def test_close_ends_the_threads_that_wait_for_a_server(tmp_path, scheme):
    from urllib3.exceptions import HTTPError

    from mpiserve.backends.remote import servers

    ended = threading.Event()

    def ask():
        with pytest.raises(HTTPError):
            server.ask(Message("/"), 3600.0)
        ended.set()

    trusted = str(certificates.made(tmp_path)) if scheme == "https" else None
    with socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET) as listening:
        listening.bind(str(tmp_path / "socket") if scheme == "unix" else ("127.0.0.1", 0))
        listening.listen()
        name = listening.getsockname()
        url = f"unix:{name}" if scheme == "unix" else f"{scheme}://127.0.0.1:{name[1]}"
        server = servers.Server(url, Settings((url,), 1, 3600.0, 0.0, "", trusted))
        threading.Thread(target=ask, daemon=True).start()
        connection, _ = listening.accept()
        if trusted:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(trusted, tmp_path / "key.pem")
            connection = tls.wrap_socket(connection, server_side=True)
        with connection:
            assert connection.recv(1)  # the request has come, and gets no answer
            server.close()
            assert ended.wait(30)
    with pytest.raises(HTTPError):
        server.ask(Message("/"), 5.0)
