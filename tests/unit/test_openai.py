"""The backend "remote" with the OpenAI API, and what that makes of bytes."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from inference_server import OpenAIHandler, Server, hang_up, say, start_again, take

from mpiserve import backends, decode_text, encode_text
from mpiserve.config import Config
from mpiserve.errors import ArgumentError, ConfigError, ModelError
from mpiserve.launch.static_check import findings
from mpiserve.wire import openai
from mpiserve.wire.json_body import WireError, error_text

pytest.importorskip("urllib3")
TEXT = {"name": "text", "dtype": "uint8", "shape": [-1, 16]}
LENGTHS = {"name": "lengths", "dtype": "int64", "shape": [-1]}
VECTOR = {"name": "v", "dtype": "float32", "shape": [-1, 2]}


def extra(name, dtype="int64"):
    return {"name": name, "dtype": dtype, "shape": [-1]}


def config(folder, urls, inputs=(TEXT,), outputs=(TEXT,), model="backwards", task="generate", **o):
    table = {"backend": "remote", "model": model, "task": task}
    table |= {"inputs": [*inputs], "outputs": [*outputs]}
    options = {"api": "openai", "url": urls, "request_timeout_s": 5, "ready_timeout_s": 0}
    table["options"] = options | o
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
    with Server(handler=OpenAIHandler) as made:
        yield made


def ask(backend, *texts, **others):
    """The texts of an answer, as Steps give it."""
    inputs = (encode_text(texts, 16), *(np.array(values) for values in others.values()))
    backend.steps.begin(1, 0, inputs)
    results, end = {}, time.monotonic() + 10
    while backend.steps.busy and time.monotonic() < end:
        results |= backend.steps.step()
    if isinstance(results[1], Exception):
        raise results[1]
    return results[1]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_each_row_is_a_prompt(load, server, endpoint):
    backend = load(server.url, outputs=(TEXT, LENGTHS), endpoint=endpoint)
    server.faults = [take(0.3), take(0.1)]
    results = ask(backend, "one", "two", "déjà")
    assert decode_text(results["text"]) == ["eno", "owt", "àjéd"]
    assert results["lengths"].tolist() == [3, 3, 4] and results["lengths"].dtype == np.int64
    assert server.most >= 2
    assert decode_text(backend.run((encode_text(["ab"], 16),))["text"]) == ["ba"]


def test_inputs_become_fields_of_the_request(load, server):
    names = {"max_new_tokens": [2, 0], "top_p": [0.5, 0.0], "seed": [0, 7], "temperature": [1.5, 0]}
    inputs = (TEXT, *(extra(name, "float32" if "_p" in name else "int64") for name in names))
    backend = load(server.url, inputs=inputs, extra={"stop": ["."]})
    assert decode_text(ask(backend, "abc", "de", **names)["text"]) == ["cb", "ed"]
    first, second = sorted(server.asked, key=lambda asked: asked["prompt"])
    same = {"model": "backwards", "stop": ["."]}
    given = {"prompt": "abc", "max_tokens": 2, "top_p": 0.5, "seed": 0, "temperature": 1.5}
    assert first == same | given
    assert second == same | {"prompt": "de", "seed": 7, "temperature": 0}


def test_a_chat_can_begin_with_a_text(load, server):
    ask(load(server.url, endpoint="chat", system="Be brief."), "Hello")
    system, user = server.asked[0]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user == {"role": "user", "content": "Hello"}
    assert server.asked[0]["temperature"] == 0


def test_a_text_that_does_not_fit_ends_with_a_whole_character(load, server):
    narrow = TEXT | {"shape": [-1, 5]}
    assert decode_text(ask(load(server.url, outputs=(narrow,)), "ééé")["text"]) == ["éé"]


def test_embeddings_are_one_request(load, server):
    backend = load(server.url, task="embed", outputs=(VECTOR,), extra={"scale": 3})
    results = ask(backend, "a", "bcd", "")
    assert results["v"].tolist() == [[1, 3], [3, 3], [0, 3]] and results["v"].dtype == np.float32
    assert server.seen == 1


@pytest.mark.parametrize("fault", [hang_up, start_again, say(503, **{"Retry-After": "0"})])
def test_a_request_is_repeated(load, server, fault):
    backend = load(server.url)
    assert decode_text(ask(backend, "ab")["text"]) == ["ba"]
    server.faults = [fault]
    assert decode_text(ask(backend, "ab", "cd")["text"]) == ["ba", "dc"]


def test_a_server_that_does_not_list_its_models_is_asked_for_a_token(load, server):
    server.lists = False
    backend = load(server.url)
    assert [asked["max_tokens"] for asked in server.asked] == [1]
    assert decode_text(ask(backend, "ab")["text"]) == ["ba"]
    with pytest.raises(ModelError, match=r"for the model 'x': status 404: no such model; .* \?"):
        load(server.url, model="x")


def test_an_error_of_one_row_is_that_of_its_request(load, server):
    with pytest.raises(ModelError, match="status 400: an empty prompt"):
        ask(load(server.url), "ab", "")


def test_a_server_that_does_not_count_tokens_has_no_lengths(load, server):
    server.counts = False
    with pytest.raises(ModelError, match=r"without usage.completion_tokens; remove 'lengths'"):
        ask(load(server.url, outputs=(TEXT, LENGTHS)), "ab")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"model": "forwards"}, "status 404: no such model; its models are backwards"),
        ({"inputs": (TEXT, extra("stream"))}, "no input 'stream', but text, max_new_tokens"),
        ({"outputs": (extra("tokens"),)}, "no output 'tokens', but text, lengths"),
        ({"outputs": (LENGTHS,)}, "needs an output 'text'"),
        ({"task": None}, "needs a task"),
        ({"task": "embed", "outputs": (VECTOR, LENGTHS)}, "has one output"),
    ],
)
def test_what_the_api_has_not_is_refused_at_load(load, server, table, text):
    with pytest.raises(ModelError, match=text):
        load(server.url, **table)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"endpoint": "chats"}, "endpoint: unknown endpoint 'chats'"),
        ({"system": 1}, "system: 1 is no text"),
        ({"extra": "stop"}, "extra: 'stop' is no table"),
        ({"api": "open-inference", "system": "x"}, "system: is an option of api = 'openai'"),
        ({"pooling": "mean"}, "pooling: unknown key"),
    ],
)
def test_a_wrong_option_is_named_before_a_job_runs(load, tmp_path, options, text):
    assert any(finding.sure for finding in findings(config(tmp_path, "http://a", **options)))
    with pytest.raises(ArgumentError, match=text):
        load("http://localhost:1", **options)


def test_other_backends_have_no_tasks(tmp_path):
    table = {"backend": "onnx", "model": "m", "task": "embed"}
    table |= {"inputs": [TEXT], "outputs": [VECTOR]}
    with pytest.raises(ConfigError, match="need the backend 'deepspeed', 'torch' or 'remote'"):
        Config.from_dict({"service": {"s": table}}, folder=tmp_path)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"text": 1}]}', b'{"choices": [7]}'],
)
def test_an_answer_that_is_none_is_an_error(body):
    with pytest.raises(WireError):
        openai.completion("completions", body)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [{"index": 1, "embedding": [1]}],
        [{"index": 0, "embedding": ["x"]}],
        [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}],
    ],
)
def test_embeddings_that_are_none_are_an_error(data):
    with pytest.raises(WireError):
        openai.embeddings(json.dumps({"data": data}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": "no such model"}',
        b'{"error": {"message": "no such model", "code": 404}}',
        b'{"detail": "no such model"}',
        b"no such model, and no JSON",
    ],
)
def test_the_text_of_an_error_is_found(body):
    assert "no such model" in error_text(body) and "{" not in error_text(body)
