"""The gateway's child: the protocol, and clients that mean no good."""

from __future__ import annotations

import json
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gateway_rank import Rank

from mpiserve.wire import open_inference as wire

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson"):
    pytest.importorskip(package)

FP32 = "/v2/models/float32/infer"
X = np.arange(6, dtype=np.float32).reshape(2, 3)
GOOD = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [0, 1, 2, 3, 4, 5]}


@pytest.fixture(scope="module")
def rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    limits = {"head_timeout_s": 0.5, "body_timeout_s": 0.5, "connections": 40}
    with Rank(folder, access_log="access.log", request_timeout_s=5.0, **limits) as made:
        made.folder = folder
        yield made
    assert made.status == 0
    log = (folder / "access.log").read_text()
    assert "GET /v2/health/live 200" in log and made.endpoint.token not in log


def infer(rank, entry=GOOD, path=FP32, **more):
    return rank.ask(path, json.dumps({"inputs": [entry]} | more).encode())


@pytest.mark.parametrize("dtype", wire.DATATYPES)
@pytest.mark.parametrize("binary", [True, False])
def test_every_dtype_in_bytes_and_in_json(rank, dtype, binary):
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(wire.numpy_dtype(dtype))
    headers, body = wire.request([("x", x)], ["y"])
    if not binary:
        values = x.astype(np.float64 if x.dtype.kind not in "iub" else x.dtype).ravel().tolist()
        entry = {"name": "x", "datatype": wire.DATATYPES[dtype], "shape": [2, 3], "data": values}
        headers, body = {}, json.dumps({"inputs": [entry]}).encode()
    status, answer, replied = rank.ask(f"/v2/models/{dtype}/infer", body, **headers)
    assert status == 200, answer
    data = answer if binary else json.dumps(answer).encode()
    length = replied.get(wire.LENGTH.lower()) or replied.get(wire.LENGTH)
    (y,) = wire.response(data, length, {"y": x.dtype}).values()
    assert (y == (x if dtype == "bool" else 2 * x)).all()


def test_numbers_stay_what_they_are(rank):
    entry = {"name": "x", "datatype": "UINT64", "shape": [1, 3], "data": [2**63 - 1, 1, 0]}
    status, answer, _ = infer(rank, entry, "/v2/models/uint64/infer")
    assert status == 200 and answer["outputs"][0]["data"] == [2**64 - 2, 2, 0]
    nan = GOOD | {"data": [float("nan"), float("inf"), 1, 1, 1, 1]}
    status, answer, _ = infer(rank, nan)
    assert status == 200 and np.isnan(answer["outputs"][0]["data"][0])


@pytest.mark.parametrize(
    "path, status",
    [
        ("/v2", 200),
        ("/v2/health/ready", 503),  # the service "lost" could not load
        ("/v2/models/float32", 200),
        ("/v2/models/float32/versions/1", 200),
        ("/v2/models/float32/versions/2", 404),
        ("/v2/models/float32/ready", 200),
        ("/v2/models/float32/config", 200),
        ("/v2/models/float32/stats", 200),
        ("/v2/models/stats", 200),
        ("/v2/models/none", 404),
        ("/v2/models/lost/ready", 500),
        (FP32, 405),
        ("/v2/repository/index", 405),
        ("/", 404),
        ("/v2/models/%2e%2e%2fsecret", 404),
    ],
)
def test_paths(rank, path, status):
    found, answer, _ = rank.ask(path)
    assert found == status, answer
    assert status == 200 or "ready" in answer or isinstance(answer["error"], str)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"name": "z"}, "'z'"),
        ({"shape": [2, 4]}, "shape"),
        ({"shape": [3, 3]}, "6 values"),
        ({"shape": [-2, 3]}, "shape"),
        ({"shape": "2"}, "shape"),
        ({"shape": [1 << 62, 3]}, "values"),
        ({"datatype": "FP64"}, "FP64"),
        ({"data": ["a"] * 6}, "values"),
        ({"data": [[1, 2], [3]]}, "values"),
        ({"data": None}, "data"),
        ({"data": [1e39] * 6}, "values"),
        ({"parameters": {"binary_data_size": 4}}, "binary_data_size"),
        ({"parameters": {"binary_data_size": -4}}, "binary_data_size"),
        ({"parameters": {"shared_memory_region": "x"}}, "shared memory"),
    ],
)
def test_wrong_inputs(rank, change, word):
    status, answer, headers = infer(rank, GOOD | change)
    assert status == 400 and word in answer["error"], answer
    assert headers["mpiserve-code"] == "EARG"


@pytest.mark.parametrize(
    "body, headers",
    [
        (b"", {}),
        (b"{", {}),
        (b"[]", {}),
        (b'{"inputs": 1}', {}),
        (b'{"inputs": [1]}', {}),
        (b'{"inputs": [{}]}', {}),
        (b"[" * 100_000, {}),
        (b"\xff\xfe", {}),
        (b'{"inputs": [], "id": "\\ud800"}', {}),
        (b"{}", {wire.LENGTH: "3"}),
        (b"{}", {wire.LENGTH: "-1"}),
        (b"{}", {wire.LENGTH: "1" * 40}),
        (b'{"inputs": []}xyz', {wire.LENGTH: "14"}),
        (b'{"inputs": [], "parameters": {"priority": "high"}}', {}),
        (b'{"inputs": [%s], "parameters": {"timeout": ""}}' % json.dumps(GOOD).encode(), {}),
        (b'{"inputs": [%s], "parameters": {"timeout": []}}' % json.dumps(GOOD).encode(), {}),
    ],
)
def test_what_is_no_request(rank, body, headers):
    status, answer, _ = rank.ask(FP32, body, **headers)
    assert status == 400 and "Traceback" not in answer["error"], answer


def test_integers_and_bools_in_json_are_not_rounded(rank):
    for datatype, dtype, data in (
        ("INT32", "int32", [1.5, 1, 1]),
        ("UINT8", "uint8", [256, 1, 1]),
        ("BOOL", "bool", [2, 1, 1]),
        ("INT8", "int8", [-129, 1, 1]),
        ("FP16", "float16", [1e6, 1, 1]),
    ):
        entry = {"name": "x", "datatype": datatype, "shape": [1, 3], "data": data}
        assert infer(rank, entry, f"/v2/models/{dtype}/infer")[0] == 400, datatype


def test_a_time_may_be_longer_than_any_float(rank):
    parameters = {"timeout": 10**400, "priority": 10**400}
    assert infer(rank, parameters=parameters)[0] == 200


def test_errors_have_the_protocols_statuses(rank):
    assert infer(rank, GOOD | {"data": [-13] * 6})[0] == 500
    status, answer, headers = infer(
        rank, GOOD | {"data": [-14] * 6}, parameters={"timeout": 100000}
    )
    assert status == 504 and headers["mpiserve-code"] == "EDEADLINE", answer
    assert infer(rank, path="/v2/models/z/infer")[0] == 400
    assert infer(rank, path="/v2/models/none/infer")[0] == 404
    assert infer(rank, outputs=[{"name": "q"}])[0] == 400
    assert rank.ask(FP32, b"x", Content_Encoding="gzip")[0] == 415


def test_a_request_that_fails_costs_those_merged_with_it_nothing(rank):
    values = [1, 2, -13, 3, 4, -13, *range(20, 44)]
    with ThreadPoolExecutor(len(values)) as threads:
        entries = [GOOD | {"shape": [1, 3], "data": [value] * 3} for value in values]
        got = list(threads.map(lambda entry: infer(rank, entry), entries))
    for value, (status, answer, _) in zip(values, got, strict=True):
        assert status == (500 if value == -13 else 200), answer
        assert value == -13 or answer["outputs"][0]["data"] == [2 * value] * 3


# ---- clients that mean no good


def test_nothing_but_live_without_the_token(rank):
    for token in ("", "Bearer ", "Bearer wrong", rank.endpoint.token, "Basic x"):
        for path in ("/v2", FP32, "/v2/health/ready", "/v2/repository/index", "/none"):
            status, answer, _ = rank.ask(path, Authorization=token)
            assert status == 401 and rank.endpoint.token not in str(answer)
        assert rank.ask("/v2/health/live", Authorization=token)[0] == 200


def raw(rank, *parts, pause=0.0):
    """Send bytes, and return what comes until the other side closes, and after how long."""
    with rank.connect() as made:
        begin = time.monotonic()
        for part in parts:
            try:
                made.sendall(part)
            except OSError:
                break
            time.sleep(pause)
        data = b""
        try:
            while more := made.recv(1 << 16):
                data += more
        except ConnectionError:
            pass
        return data, time.monotonic() - begin


def head(rank, path=FP32, **headers):
    given = {"Host": "x", "Authorization": f"Bearer {rank.endpoint.token}"} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def test_a_large_body_is_refused_before_it_comes(rank):
    data, _ = raw(rank, head(rank, Content_Length=1 << 30))
    assert data.startswith(b"HTTP/1.1 413 ")
    data, _ = raw(rank, head(rank, Authorization="Bearer x", Content_Length=1 << 20))
    assert data.startswith(b"HTTP/1.1 401 ")
    data, _ = raw(rank, head(rank, Content_Length="9" * 30))
    assert b" 200 " not in data
    with ThreadPoolExecutor(1) as thread:  # and costs nobody else the memory
        other = thread.submit(infer, rank, GOOD | {"data": [-14] * 6})
        while not rank.late:
            time.sleep(0.01)
        data, _ = raw(rank, head(rank, Content_Length=1 << 40))
        assert data.startswith(b"HTTP/1.1 413 ")
        assert other.result()[0] == 504


def test_slow_clients_are_let_go(rank):
    """Nobody who waits longer than the limits, 0.5 s here, holds a connection."""
    silent = lambda: raw(rank)  # noqa: E731
    drip = lambda: raw(rank, *[b"G"] * 1, *[b"x"] * 40, pause=0.05)  # noqa: E731
    no_body = lambda: raw(rank, head(rank, Content_Length=100), b"{")  # noqa: E731
    half = lambda: raw(rank, b"GET /v2 HTTP/1.1\r\nHost: x\r\n")  # noqa: E731
    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(each) for each in (silent, drip, no_body, half)]:
            data, seconds = future.result()
            assert b" 200 " not in data and seconds < 15


def test_a_large_head_is_refused(rank):
    data, _ = raw(rank, b"GET /v2 HTTP/1.1\r\n", *[b"X-Y: " + b"z" * 4000 + b"\r\n"] * 20)
    assert b"431" in data or data == b""
    data, _ = raw(rank, b"GET /" + b"a" * 200_000)
    assert b" 200 " not in data


def test_silent_connections_are_counted_and_go(rank):
    many = []
    try:
        for _ in range(200):
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.connect(rank.endpoint.url.removeprefix("unix:"))
            many.append(made)
        end = time.monotonic() + 20
        while True:  # those that are silent make room for one who speaks
            try:
                assert rank.ask("/v2/health/live")[0] == 200
                break
            except (ConnectionError, OSError):
                assert time.monotonic() < end
                time.sleep(0.05)
    finally:
        for made in many:
            made.close()


def sent_until_closed(made, parts):
    """Send without reading; return whether the other side has closed, and what was sent."""
    sent = 0
    made.settimeout(1)
    for part in parts:
        try:
            made.sendall(part)
            sent += len(part)
        except TimeoutError:  # it takes no more
            break
        except OSError:
            return True, sent
    poll = select.poll()
    poll.register(made, 0)  # of its end alone
    return bool(poll.poll(20_000)), sent


def test_who_does_not_read_is_let_go(rank):
    ask = head(rank, "/v2/models/stats").replace(b"POST", b"GET")
    with rank.connect() as made:
        closed, _ = sent_until_closed(made, [ask] * 90)
        assert closed
    assert infer(rank)[0] == 200


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A gateway that lets nobody go for the time."""
    times = {"head_timeout_s": 600, "body_timeout_s": 600}
    with Rank(tmp_path_factory.mktemp("patient"), **times) as made:
        yield made
    assert made.status == 0


def test_few_requests_may_be_sent_ahead(patient):
    """Each that waits takes memory; those of a program that sends some ahead are all answered."""
    ask = head(patient, "/v2/health/live").replace(b"POST", b"GET")
    with patient.connect() as made:
        made.sendall(ask * 50)
        data = b""
        while data.count(b" 200 OK") < 50:
            data += made.recv(1 << 16)
    with patient.connect() as made:
        closed, _ = sent_until_closed(made, [ask * 10_000] * 10)
        assert closed


def test_what_comes_beside_a_body_is_limited(patient):
    """Fields behind it, and what each piece may say of itself."""
    begin = head(patient, "/v2/repository/index", Transfer_Encoding="chunked")
    field, more = b"0\r\n" + b"x: y\r\n" * 1000, b"x: y\r\n" * 10_000
    for first, then in ((field, more), (b"0\r\nx: ", b"y" * 60_000), (b"1;", b"z" * 60_000)):
        with patient.connect() as made:
            closed, sent = sent_until_closed(made, [begin, first, *[then] * 1000])
            assert closed and sent < 50 * 60_000
    pieces = b"".join(b"1\r\n%c\r\n" % c for c in b"{" + b" " * 50_000 + b"}")
    last = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
    data, _ = raw(patient, begin + pieces + b"0\r\nx: y\r\n\r\n" + last)
    assert data.startswith(b"HTTP/1.1 200 ")


def test_who_goes_before_the_answer_is_no_error(tmp_path, capfd):
    late = json.dumps({"inputs": [GOOD | {"data": [-14] * 6}]}).encode()
    with Rank(tmp_path) as rank:
        for ahead in range(3):
            with rank.connect() as made:
                ask = head(rank, Content_Length=len(late)) + late
                made.sendall(ask + head(rank, "/v2", Content_Length=0) * ahead)
                while not rank.late:
                    time.sleep(0.01)
            while rank.late:
                time.sleep(0.01)
        assert infer(rank)[0] == 200
    assert capfd.readouterr().err == ""


def test_after_all_of_that_it_answers(rank):
    assert infer(rank)[0] == 200
