"""The gateway's gRPC: tritonclient as it is, and clients that mean no good."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random

import numpy as np
import pytest
from gateway_rank import Rank
from http2_frames import CONTINUATION, DATA, HEADERS, PREFACE, connected, frame, head, mutated, raw

from mpiserve.wire import open_inference as names

for package in (
    "starlette",
    "uvicorn",
    "httptools",
    "uvloop",
    "orjson",
    "google.protobuf",
    "hpack",
):
    pytest.importorskip(package)
grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")

from tritonclient.grpc import service_pb2  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from mpiserve.wire import open_inference_messages as messages  # noqa: E402

X = np.arange(6, dtype=np.float32).reshape(2, 3)
INFER = messages.SERVICE + "ModelInfer"
LIMIT = 0.5


@pytest.fixture(scope="module")
def rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    limits = {"head_timeout_s": LIMIT, "body_timeout_s": LIMIT, "connections": 40}
    settings = {"access_log": "access.log", "grpc_address": "unix", "request_timeout_s": 5.0}
    with Rank(folder, **settings, **limits) as made:
        made.folder = folder
        yield made
    assert made.status == 0
    log = (folder / "access.log").read_text()
    assert f"POST {INFER} OK" in log and made.endpoint.token not in log


@pytest.fixture(scope="module")
def client(rank):
    with triton.InferenceServerClient(rank.endpoint.grpc.url) as made:
        yield made


def headers(rank):
    return {"authorization": f"Bearer {rank.endpoint.token}"}


def tensor(x, datatype, name="x"):
    made = triton.InferInput(name, x.shape, datatype)
    made._raw_content = x.tobytes()  # set_data_from_numpy makes float32 of bfloat16
    return made


def refused(call, *args, **more):
    with pytest.raises(InferenceServerException) as error:
        call(*args, **more)
    return error.value.status().removeprefix("StatusCode."), error.value.message()


def test_the_socket_is_private(rank):
    path = rank.endpoint.grpc.url.removeprefix("unix:")
    assert (rank.endpoint.file.parent.stat().st_mode & 0o777) == 0o700
    assert socket.socket(socket.AF_UNIX).connect_ex(path) == 0


def test_the_messages_are_those_of_triton():
    """Every field has the number, the kind and the multiplicity that Triton's stubs have."""
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    pairs = {"ModelInferRequest": "ModelInferRequest"}
    for ours, theirs in (
        *(("Live", "ServerLiveResponse"), ("Model", "ModelReadyRequest")),
        *(("Ready", "ModelReadyResponse"), ("ServerMetadata", "ServerMetadataResponse")),
        *(("ModelMetadata", "ModelMetadataResponse"), ("ModelConfig", "ModelConfigResponse")),
        *(("ModelStatistics", "ModelStatisticsResponse"), ("Change", "RepositoryModelLoadRequest")),
        *(
            ("RepositoryIndex", "RepositoryIndexResponse"),
            ("Change", "RepositoryModelUnloadRequest"),
        ),
        *((name, name) for name in ("RepositoryIndexRequest", "ModelInferRequest")),
        *((name, name) for name in ("ModelInferResponse", "ModelStreamInferResponse")),
    ):
        pairs[theirs] = ours
    for theirs, ours in pairs.items():
        other = service_pb2.DESCRIPTOR.message_types_by_name[theirs]
        assert _differs(messages.message(ours).DESCRIPTOR, other) == []
    assert f"/{service.full_name}/" == messages.SERVICE


def _differs(ours, theirs):
    """Enumerations are numbers here; the parameters of a change have a kind that differs in one."""
    found = []
    for field in ours.fields:
        other = theirs.fields_by_name.get(field.name)
        if other is None or other.number != field.number:
            if (theirs.name, field.number) not in (
                ("ModelRepositoryParameter", 4),
                ("ModelRepositoryParameter", 5),
            ):
                found.append((theirs.full_name, field.name))
        elif field.type == field.TYPE_MESSAGE:
            found += _differs(field.message_type, other.message_type)
        elif (
            other.type not in (field.type, other.TYPE_ENUM)
            or field.is_repeated != other.is_repeated
        ):
            found.append((theirs.full_name, field.name))
    return found


@pytest.mark.parametrize("dtype", names.DATATYPES)
def test_every_dtype_in_bytes_and_typed(rank, client, dtype):
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(names.numpy_dtype(dtype))
    datatype = names.DATATYPES[dtype]
    result = client.infer(dtype, [tensor(x, datatype)], headers=headers(rank), request_id="7")
    response = result.get_response()
    (raw,) = response.raw_output_contents
    y = np.frombuffer(raw, x.dtype).reshape(2, 3)
    assert (y == (x if dtype == "bool" else 2 * x)).all()
    assert (response.id, response.model_name, response.outputs[0].datatype) == (
        "7",
        dtype,
        datatype,
    )
    if dtype in ("float16", "bfloat16"):
        return
    asked = service_pb2.ModelInferRequest(model_name=dtype)
    entry = asked.inputs.add(name="x", datatype=datatype, shape=[2, 3])
    kind = {"BOOL": "bool", "FP32": "fp32", "FP64": "fp64", "UINT64": "uint64", "INT64": "int64"}
    kind = kind.get(datatype) or ("uint" if dtype.startswith("u") else "int")
    getattr(entry.contents, f"{kind}_contents").extend(x.ravel().tolist())
    answer = call(rank, INFER, asked, service_pb2.ModelInferResponse)
    assert answer.raw_output_contents == response.raw_output_contents


def call(rank, path, message, kind, **more):
    """Call a method with a message, or bytes, and return the answer or the error's code."""
    with grpc.insecure_channel(rank.endpoint.grpc.url) as channel:
        method = channel.unary_unary(path)
        data = message if isinstance(message, bytes) else message.SerializeToString()
        given = {"metadata": tuple(headers(rank).items()), "timeout": 20} | more
        try:
            return kind.FromString(method(data, **given))
        except grpc.RpcError as error:
            assert rank.endpoint.token not in error.details()
            return error.code().name


def test_health_metadata_statistics_and_the_repository(rank, client):
    mine = headers(rank)
    assert client.is_server_live() and client.is_server_live(mine)
    assert not client.is_server_ready(mine)  # the service "lost" could not load
    assert client.is_model_ready("float32", headers=mine)
    assert client.is_model_ready("float32", "1", headers=mine)
    assert client.get_server_metadata(mine).name == "mpiserve"
    metadata = client.get_model_metadata("float32", headers=mine, as_json=True)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}]
    config = client.get_model_config("float32", headers=mine, as_json=True)["config"]
    assert config["max_batch_size"] == 64 and config["input"][0]["data_type"] == "TYPE_FP32"
    client.infer("float32", [tensor(X, "FP32")], headers=mine)
    (stats,) = client.get_inference_statistics("float32", headers=mine).model_stats
    assert stats.inference_count >= 2 and stats.inference_stats.success.ns > 0
    assert len(client.get_inference_statistics(headers=mine).model_stats) > 10
    index = client.get_model_repository_index(mine).models
    assert {model.name: model.state for model in index}["float32"] == "READY"
    assert [model.reason for model in index if model.name == "lost"] == ["no weights"]
    client.load_model("float32", headers=mine)
    client.unload_model("float32", headers=mine)
    assert rank.changes == [("reload", "float32"), ("unload", "float32")]


@pytest.mark.parametrize(
    "change, code, word",
    [
        ({"name": "z"}, "INVALID_ARGUMENT", "'z'"),
        ({"x": X[:, :2]}, "INVALID_ARGUMENT", "shape"),
        ({"datatype": "FP64"}, "INVALID_ARGUMENT", "FP64"),
        ({"datatype": "BYTES"}, "INVALID_ARGUMENT", "BYTES"),
        ({"size": 20}, "INVALID_ARGUMENT", "20 bytes"),
        ({"model": "none"}, "NOT_FOUND", "none"),
        ({"model": "lost"}, "INTERNAL", "no weights"),
        ({"model": "z"}, "INVALID_ARGUMENT", "complex64"),
        ({"version": "2"}, "NOT_FOUND", "version"),
        ({"x": X * 0 - 13}, "INTERNAL", "-13"),
        ({"x": X * 0 - 14, "timeout": 100_000}, "DEADLINE_EXCEEDED", "0.1 s"),
        ({"x": X * 0 - 14, "client_timeout": 0.2}, "DEADLINE_EXCEEDED", ""),
        ({"priority": 2**63}, "INVALID_ARGUMENT", "priority"),
    ],
)
def test_errors_have_their_codes(rank, client, change, code, word):
    given = {"name": "x", "x": X, "datatype": "FP32", "model": "float32", "version": ""} | change
    x = tensor(given["x"], given["datatype"], given["name"])
    x._raw_content = x._raw_content[: change.get("size")]
    more = {key: given[key] for key in ("timeout", "client_timeout", "priority") if key in given}
    if change.get("priority"):
        more = {"parameters": {"mpiserve_priority": 1000}}
    args = given["model"], [x], given["version"]
    found, text = refused(client.infer, *args, headers=headers(rank), **more)
    assert found == code and word in text, text


def test_wrong_messages(rank):
    infer = service_pb2.ModelInferRequest
    x = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
    for message in (
        b"\xff\xff",
        infer(model_name="float32"),
        infer(model_name="float32", inputs=[x]),
        infer(model_name="float32", inputs=[x, x], raw_input_contents=[b"\0" * 12] * 2),
        infer(model_name="float32", inputs=[x], raw_input_contents=[b"\0" * 12] * 2),
        infer(model_name="float32", inputs=[x | {"shape": [-1, 3]}], raw_input_contents=[b""]),
        infer(model_name="float32", inputs=[x | {"contents": {"int_contents": [1, 2, 3]}}]),
        infer(model_name="float32", inputs=[x | {"contents": {"fp32_contents": [1, 2]}}]),
        infer(
            model_name="int8",
            inputs=[x | {"datatype": "INT8", "contents": {"int_contents": [1, 2, 300]}}],
        ),
        infer(
            model_name="float16",
            inputs=[x | {"datatype": "FP16", "contents": {"fp32_contents": [1, 2, 3]}}],
        ),
        infer(
            model_name="float32",
            inputs=[x],
            raw_input_contents=[b"\0" * 12],
            outputs=[{"name": "q"}],
        ),
    ):
        assert call(rank, INFER, message, infer) == "INVALID_ARGUMENT", message
    assert call(rank, messages.SERVICE + "TraceSetting", b"", infer) == "UNIMPLEMENTED"
    assert call(rank, "/none/none", b"", infer) == "UNIMPLEMENTED"


def test_a_stream_answers_in_order_and_outlives_an_error(rank):
    got: queue.Queue = queue.Queue()
    with triton.InferenceServerClient(rank.endpoint.grpc.url) as client:
        client.start_stream(lambda result, error: got.put((result, error)), headers=headers(rank))
        for value in (1, -13, 2):
            client.async_stream_infer("float32", [tensor(X * 0 + value, "FP32")])
        found = [got.get(timeout=20) for _ in range(3)]
    assert [float(result.as_numpy("y")[0, 0]) for result, error in found if not error] == [2, 4]
    assert "-13" in found[1][1].message()


def test_streams_of_one_token_leave_calls_for_others(rank, client):
    end, mine = queue.Queue(), [*headers(rank).items()]
    with grpc.insecure_channel(rank.endpoint.grpc.url) as channel:
        opened = channel.stream_stream(messages.SERVICE + "ModelStreamInfer")
        calls = [opened(iter(end.get, None), metadata=mine) for _ in range(21)]  # of 40
        until = time.monotonic() + 20
        while not any(call.done() for call in calls) and time.monotonic() < until:
            time.sleep(0.01)
        assert [call.code().name for call in calls if call.done()] == ["RESOURCE_EXHAUSTED"]
        assert client.is_model_ready("float32", headers=headers(rank))
        for call in calls:
            call.cancel()
            end.put(None)


def test_many_at_once_by_aio_are_merged(rank):
    aio = pytest.importorskip("tritonclient.grpc.aio")
    values = [-14] * 4 + [*range(20)]  # four are late: the others wait for them, and go together

    mine = headers(rank)

    async def work():
        async with aio.InferenceServerClient(rank.endpoint.grpc.url) as client:
            asks = [
                client.infer("float32", [tensor(X * 0 + value, "FP32")], headers=mine, priority=i)
                for i, value in zip([1, 2, 3, 4] + [5] * 20, values, strict=True)
            ]
            return await asyncio.gather(*asks, return_exceptions=True)

    before = len(rank.seen)
    for value, result in zip(values, asyncio.run(work()), strict=True):
        assert value < 0 or (result.as_numpy("y") == 2 * value).all()
    assert len(rank.seen) - before < len(values)


def test_a_cancelled_call_is_forgotten(rank, client):
    asked = client.async_infer(
        "float32", [tensor(X * 0 - 14, "FP32")], lambda *_: None, headers=headers(rank)
    )
    time.sleep(0.1)
    asked.cancel()
    assert client.infer("float32", [tensor(X, "FP32")], headers=headers(rank))
    end = time.monotonic() + 10
    while f"POST {INFER} CANCELLED" not in (rank.folder / "access.log").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- clients that mean no good


def test_nothing_but_live_without_the_token(rank, client):
    for token in ("", "Bearer ", "Bearer wrong", rank.endpoint.token, "Basic x"):
        wrong = {"authorization": token}
        for ask in (
            client.is_server_ready,
            client.get_server_metadata,
            client.get_model_repository_index,
        ):
            assert refused(ask, wrong)[0] == "UNAUTHENTICATED"
        assert (
            refused(client.infer, "float32", [tensor(X, "FP32")], headers=wrong)[0]
            == "UNAUTHENTICATED"
        )
        assert client.is_server_live(wrong)
    assert refused(client.infer, "float32", [tensor(X, "FP32")])[0] == "UNAUTHENTICATED"


def test_a_message_that_is_too_large_is_refused(rank):
    with grpc.insecure_channel(rank.endpoint.grpc.url) as channel:
        ask = channel.unary_unary(INFER)
        with pytest.raises(grpc.RpcError) as error:
            ask(b"\0" * (66 << 20), metadata=tuple(headers(rank).items()), timeout=20)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_silent_and_slow_clients_are_let_go(rank):
    """A gibibyte that is announced, a message that does not come, a head byte by byte, silence."""
    begun = PREFACE + frame(HEADERS, 4, 1, head(rank, INFER))
    huge = begun + frame(DATA, 0, 1, b"\0" + (1 << 30).to_bytes(4, "big"))
    half = begun + frame(DATA, 0, 1, b"\0" + (100).to_bytes(4, "big") + b"x")
    stranger = (
        PREFACE + frame(HEADERS, 4, 1, head(rank, INFER, "Bearer x")) + frame(DATA, 0, 1, b"\0\0")
    )
    whole = frame(HEADERS, 4, 1, head(rank, INFER))
    drip = [PREFACE, *(whole[i : i + 1] for i in range(60))]
    slow = [bytes([byte]) for byte in begun[:60]]
    with ThreadPoolExecutor(7) as threads:
        asked = {
            "silent": threads.submit(raw, rank),
            "preface": threads.submit(raw, rank, PREFACE[:10]),
            "drip": threads.submit(raw, rank, *drip, pause=0.05),
            "slow": threads.submit(raw, rank, *slow, pause=0.05),
            "8": threads.submit(raw, rank, huge, until=b"grpc-status"),
            "4": threads.submit(raw, rank, half, until=b"grpc-status"),
            "16": threads.submit(raw, rank, stranger, until=b"grpc-status"),
        }
        for name, future in asked.items():
            data, seconds = future.result()
            assert seconds < 15, name
            assert not name.isdigit() or b"grpc-status" in data, (name, data)


def test_heads_that_make_no_sense_end_their_connection_alone(rank, client):
    """grpcio 1.85 answers nobody any more after the first one."""
    heads = [frame(HEADERS, 4, 1, head(rank, b"/\xff\xfe"))]
    heads += [frame(HEADERS, 4 | 8, 1, b""), frame(HEADERS, 4 | 8, 1, b"\xff" + head(rank, INFER))]
    heads += [frame(HEADERS, 4, 1, b"\xff" * 20), frame(HEADERS, 0, 1, b"x" * 40_000)]
    heads += [frame(CONTINUATION, 4, 1, head(rank, b"\xc8"))]
    cut = frame(HEADERS, 0, 1, head(rank, INFER, "Bearer \xe8")) + frame(DATA, 0, 1, b"\0" * 5)
    for bad in [*heads, cut, frame(HEADERS, 4, 1, head(rank, INFER, "Bearer \xe8"))]:
        data, seconds = raw(rank, PREFACE + bad)
        assert b"grpc-status" not in data and seconds < 15
    assert client.infer("float32", [tensor(X, "FP32")], headers=headers(rank), client_timeout=10)


@pytest.mark.parametrize("seed", range(3))
def test_random_messages_and_frames_leave_it_as_it_is(rank, client, seed):
    random = Random(seed)
    x = {"name": "x", "datatype": "FP32", "shape": [2, 3]}
    good = service_pb2.ModelInferRequest(model_name="float32", inputs=[x])
    good.raw_input_contents.append(X.tobytes())
    body = good.SerializeToString()
    for _ in range(30):
        data = mutated(random, body)
        parts = [
            frame(
                HEADERS,
                4,
                1,
                mutated(random, head(rank, INFER)) if random.random() < 0.3 else head(rank, INFER),
            ),
            frame(DATA, 1, 1, b"\0" + len(data).to_bytes(4, "big") + data),
        ]
        noise = frame(random.randrange(12), random.randrange(256), 1, random.randbytes(9))
        parts.insert(random.randrange(3), noise)
        with connected(rank) as made:
            made.sendall(PREFACE + b"".join(parts))
            made.settimeout(0.02)
            with suppress(OSError):
                made.recv(1 << 16)
    result = client.infer("float32", [tensor(X, "FP32")], headers=headers(rank), client_timeout=10)
    assert (result.as_numpy("y") == 2 * X).all()


def test_hundreds_of_silent_connections_are_not_kept(rank, client):
    many = [connected(rank) for _ in range(200)]
    try:
        end = time.monotonic() + 20
        while True:
            with triton.InferenceServerClient(rank.endpoint.grpc.url) as other:
                try:
                    assert other.is_server_live(client_timeout=2)
                    break
                except InferenceServerException:
                    assert time.monotonic() < end
    finally:
        for made in many:
            made.close()


def test_after_all_of_that_both_protocols_answer(rank, client):
    assert (
        client.infer("float32", [tensor(X, "FP32")], headers=headers(rank)).as_numpy("y") == 2 * X
    ).all()
    assert rank.ask("/v2/models/float32/ready")[0] == 200


def test_calls_under_way_have_their_answers_when_the_job_ends(tmp_path):
    with Rank(tmp_path, grpc_address="127.0.0.1:0") as rank:
        assert rank.endpoint.grpc.url.startswith("127.0.0.1:")
        with triton.InferenceServerClient(rank.endpoint.grpc.url) as client:
            client.infer("float32", [tensor(X, "FP32")], headers=headers(rank))
            found = []
            ask = lambda: found.append(  # noqa: E731
                refused(
                    client.infer, "float32", [tensor(X * 0 - 14, "FP32")], headers=headers(rank)
                )
            )
            thread = threading.Thread(target=ask)
            thread.start()
            while not rank.late:
                time.sleep(0.01)
            rank.drain()
            thread.join()
    # Not "unavailable": the rank's answer, which came half a second after the end began.
    assert found == [("DEADLINE_EXCEEDED", "too late")]
    assert rank.status == 0
