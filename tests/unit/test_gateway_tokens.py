"""Tokens of several clients at the gateway: who may use what, and how often."""

from __future__ import annotations

import asyncio
import json
import queue
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gateway_rank import Rank

import mpiserve
from mpiserve.config.gateway_files import TokenEntry
from mpiserve.errors import ArgumentError, NotFoundError
from mpiserve.gateway import tokens
from mpiserve.gateway.errors import Refusal

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson", "hpack"):
    pytest.importorskip(package)
grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")

from mpiserve.gateway.openai_api import OpenAIRoutes  # noqa: E402
from mpiserve.gateway.routes import HOLDER  # noqa: E402
from mpiserve.wire import open_inference_messages as messages  # noqa: E402

X = np.arange(6, dtype=np.float32).reshape(2, 3)
GOOD = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [0, 1, 2, 3, 4, 5]}
BODY = json.dumps({"inputs": [GOOD]}).encode()
FP32, FP64 = "/v2/models/float32", "/v2/models/float64"
ALICE, BOB, OPERATOR, SLOW = (f"{name}-" + 40 * "t" for name in ("alice", "bob", "op", "slow"))
FILE = f"""
[alice]
token = "{ALICE}"
services = ["float32", "lost"]
[bob]
token = "{BOB}"
services = ["float32", "float64"]
[operator]
token = "{OPERATOR}"
change = true
"""
# Each of them for one test: so many at once, and the next one long after the test.
SLOW_ONES = ("http", "openai", "grpc", "stream")
for kind in SLOW_ONES:
    FILE += f'[slow-{kind}]\ntoken = "{SLOW}{kind}"\nrate = 0.01\nburst = 2\n'


@pytest.fixture(scope="module")
def rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "tokens.toml").write_text(FILE)
    (folder / "tokens.toml").chmod(0o600)
    settings = {"access_log": "access.log", "grpc_address": "unix", "tokens_file": "tokens.toml"}
    with Rank(folder, **settings) as made:
        yield made
    assert made.status == 0
    log = (folder / "access.log").read_text()
    for name in ("alice", "operator", "slow-http", "slow-grpc", "job"):
        assert f" {name}\n" in log
    for token in (ALICE, OPERATOR, SLOW, made.endpoint.token):
        assert token not in log


def asks(rank, token, path, body=None):
    return rank.ask(path, body, Authorization=f"Bearer {token}")


def test_a_token_is_for_its_services(rank):
    assert asks(rank, ALICE, f"{FP32}/infer", BODY)[0] == 200
    assert asks(rank, ALICE, FP32)[0] == 200
    for path in (FP64, f"{FP64}/ready", f"{FP64}/config", f"{FP64}/stats", "/v2/models/none"):
        status, answer, _ = asks(rank, ALICE, path)
        assert status == 403 and "'alice' is for float32, lost" in answer["error"]
    assert asks(rank, ALICE, f"{FP64}/infer", BODY)[0] == 403
    assert asks(rank, ALICE, "/v2/models/lost/ready")[0] == 500


def test_lists_have_nothing_of_other_services(rank):
    status, entries, _ = asks(rank, ALICE, "/v2/repository/index", b"")
    assert status == 200 and [entry["name"] for entry in entries] == ["float32", "lost"]
    _, table, _ = asks(rank, ALICE, "/v2/models/stats")
    assert [entry["name"] for entry in table["model_stats"]] == ["float32"]
    assert asks(rank, ALICE, "/metrics")[0] == 403
    status, text, _ = asks(rank, OPERATOR, "/metrics")
    (count,) = re.findall(rb'refused_total\{[^}]*reason="rights"[^}]*\} (\d+)', text)
    assert status == 200 and int(count) > 0
    assert ALICE.encode() not in text


def test_readiness_is_that_of_the_services_of_a_token(rank):
    path = "/v2/health/ready"
    found = [asks(rank, token, path)[0] for token in (ALICE, BOB, OPERATOR)]
    assert found == [503, 200, 503]  # "lost" is not ready
    with triton.InferenceServerClient(rank.endpoint.grpc.url) as client:
        assert client.is_server_ready(headers={"authorization": f"Bearer {BOB}"})
        assert not client.is_server_ready(headers={"authorization": f"Bearer {ALICE}"})


def test_models_change_for_those_who_may(rank):
    for change in ("load", "unload"):
        path = f"/v2/repository/models/float32/{change}"
        assert asks(rank, ALICE, path, b"")[0] == 403
        assert asks(rank, OPERATOR, path, b"")[0] == 200
    assert len(rank.changes) == 2


def test_too_many_requests_are_told_when_to_come_again(rank):
    token = SLOW + "http"
    assert [asks(rank, token, f"{FP32}/infer", BODY)[0] for _ in range(2)] == [200, 200]
    status, answer, headers = asks(rank, token, FP32)
    assert status == 429 and "0.01 requests a second" in answer["error"]
    assert 1 < int(headers["retry-after"]) <= 100
    assert asks(rank, token, "/v2/health/live")[0] == 200
    assert rank.ask(FP32)[0] == 200  # others do not suffer


def test_the_openai_api_has_its_own_form_of_refusals(rank):
    body = json.dumps({"model": "float64", "prompt": "Hi"}).encode()
    status, answer, _ = asks(rank, ALICE, "/v1/completions", body)
    assert status == 403 and answer["error"]["code"] == "permission_denied"
    for _ in range(3):
        status, answer, headers = asks(rank, SLOW + "openai", "/v1/models")
    assert status == 429 and answer["error"]["code"] == "rate_limit_exceeded"
    assert int(headers["retry-after"]) > 1


def test_wrong_tokens_are_nobody(rank):
    for header in (f"Bearer {ALICE[:-1]}", f"bearer {ALICE}", ALICE, "Bearer ", f"Basic {ALICE}"):
        assert rank.ask(FP32, Authorization=header)[0] == 401


def test_the_child_has_no_token(rank):
    process = Path("/proc") / str(rank.child._process.pid)
    said = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    for token in (ALICE, OPERATOR, SLOW, rank.endpoint.token):
        assert token.encode() not in said


def test_the_interface_of_a_session(rank):
    with mpiserve.connect(rank.endpoint.url, ALICE) as session:
        assert (session.service("float32")(X) == 2 * X).all()
        with pytest.raises(NotFoundError):
            session.service("float64")
        with pytest.raises(ArgumentError, match="change = true"):
            session.reload("float32")


def test_the_openai_api_lists_the_models_of_a_token():
    languages = {
        name: SimpleNamespace(service=SimpleNamespace(name=name), generates=True)
        for name in ("one", "other")
    }
    routes = OpenAIRoutes(SimpleNamespace(languages=languages), None, 1.0)
    for services, seen in ((("one",), ["one"]), (None, ["one", "other"])):
        holder = tokens.Holder(TokenEntry("a", "", services=services))
        answer = asyncio.run(routes.models(SimpleNamespace(scope={HOLDER: holder})))
        assert [entry["id"] for entry in json.loads(answer.body)["data"]] == seen


# ---- gRPC


def asked():
    made = triton.InferInput("x", X.shape, "FP32")
    made.set_data_from_numpy(X)
    return [made]


def refused(call, *args, **more):
    with pytest.raises(triton.InferenceServerException) as error:
        call(*args, **more)
    return error.value.status().removeprefix("StatusCode.")


def test_grpc_has_the_same_rights(rank):
    headers = {"authorization": f"Bearer {ALICE}"}
    with triton.InferenceServerClient(rank.endpoint.grpc.url) as client:
        y = client.infer("float32", asked(), headers=headers).as_numpy("y")
        assert (y == 2 * X).all()
        for call, args in (
            (client.infer, ("float64", asked())),
            (client.get_model_metadata, ("float64",)),
            (client.is_model_ready, ("none",)),
            (client.load_model, ("float32",)),
            (client.unload_model, ("float32",)),
        ):
            assert refused(call, *args, headers=headers) == "PERMISSION_DENIED"
        index = client.get_model_repository_index(headers=headers).models
        assert [entry.name for entry in index] == ["float32", "lost"]
        stats = client.get_inference_statistics(headers=headers).model_stats
        assert [entry.name for entry in stats] == ["float32"]


def test_grpc_tells_when_to_come_again(rank):
    headers = {"authorization": f"Bearer {SLOW}grpc"}
    with triton.InferenceServerClient(rank.endpoint.grpc.url) as client:
        assert client.is_server_live(headers=headers)
        for _ in range(2):
            client.infer("float32", asked(), headers=headers)
        assert refused(client.infer, "float32", asked(), headers=headers) == "RESOURCE_EXHAUSTED"
    with grpc.insecure_channel(rank.endpoint.grpc.url) as channel:
        call = channel.unary_unary(messages.SERVICE + "ServerReady")
        with pytest.raises(grpc.RpcError) as error:  # tritonclient does not show metadata
            call(b"", metadata=[*headers.items()])
    trailing = dict(error.value.trailing_metadata())
    assert 1 < int(trailing["retry-after"]) <= 100


def test_each_request_of_a_stream_counts(rank):
    headers, answers = {"authorization": f"Bearer {SLOW}stream"}, queue.Queue()
    with triton.InferenceServerClient(rank.endpoint.grpc.url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        for _ in range(3):
            client.async_stream_infer("float32", asked())
        found = [answers.get(timeout=20) for _ in range(3)]
        client.stop_stream()
    assert [error is None for _, error in found] == [True, True, False]
    assert "requests a second" in found[2][1].message()
    with grpc.insecure_channel(rank.endpoint.grpc.url) as channel:  # opening one counts, too
        call = channel.stream_stream(messages.SERVICE + "ModelStreamInfer")
        with pytest.raises(grpc.RpcError) as error:
            next(call(iter(()), metadata=[*headers.items()]))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.value.trailing_metadata())["retry-after"]) > 1


# ---- how often


def test_a_rate_has_a_burst_and_comes_back(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(tokens.time, "monotonic", lambda: now[0])
    holder = tokens.Holder(TokenEntry("a", "", rate=2.0, burst=3))
    for _ in range(3):
        holder.take()
    with pytest.raises(Refusal) as error:
        holder.take()
    assert error.value.status == 429 and error.value.retry_s == 1
    now[0] += 0.5
    holder.take()
    now[0] += 3600  # no more than the burst is saved up
    for _ in range(3):
        holder.take()
    with pytest.raises(Refusal):
        holder.take()


def test_without_a_rate_there_is_no_limit():
    holder = tokens.Holder(TokenEntry("a", ""))
    for _ in range(10_000):
        holder.take()
