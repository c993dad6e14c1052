"""The OpenAI API of the gateway's child, before real language models, and hostile clients."""

from __future__ import annotations

import asyncio
import json
import time

import numpy as np
import pytest
from gateway_job import until_true
from language_rank import LanguageRank, embedder, greedy, ids, models, table

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson"):
    pytest.importorskip(package)
openai = pytest.importorskip("openai")
httpx2 = pytest.importorskip("httpx2")

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("openai")


@pytest.fixture(scope="module")
def gpt(folder):
    return models(folder)


@pytest.fixture(scope="module")
def rank(folder, gpt):
    services = {
        "assistant": table(likeliest=2),
        "whole": table(streams=False),
        "greedy": table(draws=False),
    }
    services["vectors"] = embedder()
    with LanguageRank(folder, services, request_timeout_s=20.0, queue=32) as made:
        yield made
    assert made.status == 0


@pytest.fixture
def client(rank):
    with openai.OpenAI(**arguments(rank, httpx2.Client, httpx2.HTTPTransport)) as made:
        yield made


def arguments(rank, client, transport):
    path = rank.endpoint.url.removeprefix("unix:")
    http = client(transport=transport(uds=path))
    token = rank.endpoint.token
    return {"base_url": "http://job/v1", "api_key": token, "http_client": http, "max_retries": 0}


def quiet(rank):
    """Whether the models have nothing left of any client."""
    return all(not steps.busy and not steps._streams.open for steps in rank.generators)


def ask(rank, path=COMPLETIONS, **more):
    base = {"model": "assistant", "prompt": "Hi", "temperature": 0}
    return rank.ask(path, json.dumps(base | more).encode())


def test_models_are_listed(client):
    assert {model.id for model in client.models.list()} == {
        *("assistant", "whole", "greedy", "vectors")
    }
    assert client.models.retrieve("assistant").owned_by == "mpiserve"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("none")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize("name", ["assistant", "whole", "greedy"])
def test_completions_are_those_of_the_model(client, gpt, name):
    made = client.completions.create(model=name, prompt=["Hi", "Hello"], temperature=0)
    assert [choice.text for choice in made.choices] == [
        greedy(gpt, prompt, 16) for prompt in ("Hi", "Hello")
    ]
    assert [choice.finish_reason for choice in made.choices] == ["length"] * 2
    assert made.usage.prompt_tokens == 7 and made.usage.completion_tokens == 32
    assert made.model == name and made.object == "text_completion"
    tokens = client.completions.create(model=name, prompt=ids("Hi"), temperature=0, max_tokens=3)
    assert tokens.choices[0].text == greedy(gpt, "Hi", 3)


@pytest.mark.parametrize("name", ["assistant", "whole"])
def test_a_stream_has_the_same_text(client, gpt, name):
    events = [*client.completions.create(model=name, prompt="Hi", temperature=0, stream=True)]
    assert "".join(event.choices[0].text for event in events) == greedy(gpt, "Hi", 16)
    assert [event.choices[0].finish_reason for event in events][-1] == "length"
    assert len(events) > 4 or name == "whole"


def test_a_chat_has_the_template_of_the_model(client, gpt):
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    wanted = greedy(gpt, "system: Be brief. user: Hi assistant:", 24)
    made = client.chat.completions.create(model="assistant", messages=messages, temperature=0)
    assert made.choices[0].message.content == wanted
    assert made.choices[0].message.role == "assistant" and made.choices[0].finish_reason == "length"
    events = client.chat.completions.create(
        model="assistant",
        messages=messages,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *parts, last = events
    assert "".join(part.choices[0].delta.content for part in parts) == wanted
    assert parts[0].choices[0].delta.role == "assistant"
    assert not last.choices and last.usage == made.usage


def test_likelihoods_are_told(client, gpt):
    """In short: test_gateway_logprobs has the rest."""
    text = greedy(gpt, "Hi", 16)
    options = {"model": "assistant", "prompt": "Hi", "temperature": 0, "logprobs": 2}
    told = client.completions.create(**options).choices[0].logprobs
    assert "".join(token for token in told.tokens if token != "?") == text
    for token, own, best in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert len(best) == 2 and own == best[token] == max(best.values()) <= 0
    chat = {"model": "assistant", "messages": HI, "temperature": 0, "logprobs": True}
    events = [*client.chat.completions.create(**chat, stream=True)]
    for event in events:
        choice = event.choices[0]
        assert choice.delta.content == "".join(
            bytes(one.bytes).decode() for one in choice.logprobs.content if one.token != "?"
        )


def test_several_choices_draw_by_themselves_and_a_seed_repeats_them(client):
    def texts(**more):
        made = client.completions.create(
            model="assistant", prompt=["Hi", "Ho"], n=3, max_tokens=8, **more
        )
        assert [choice.index for choice in made.choices] == [*range(6)]
        return [choice.text for choice in made.choices]

    first = texts(seed=3, temperature=1.5)
    assert len({*first}) == 6 and texts(seed=3, temperature=1.5) == first
    assert texts() != texts()
    assert len({*texts(top_p=0)}) == 2  # the likeliest tokens, of each prompt
    assert len({*texts(temperature=1.5, extra_body={"top_k": 1})}) == 2


def test_a_text_ends_at_a_stop_and_its_sequence_too(rank, client, gpt):
    wanted = greedy(gpt, "Hi", 16)
    stop = wanted[5:7]
    at = wanted.index(stop)
    made = client.completions.create(model="assistant", prompt="Hi", temperature=0, stop=[stop])
    assert made.choices[0].text == wanted[:at] and made.choices[0].finish_reason == "stop"
    assert made.usage.completion_tokens == at + 2
    until_true(lambda: quiet(rank))


def test_embeddings_of_texts(client):
    texts = [f"text {i}" for i in range(20)]  # more than a batch has rows
    made = client.embeddings.create(model="vectors", input=texts)  # in base64
    floats = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    for i, (one, other) in enumerate(zip(made.data, floats.data, strict=True)):
        assert one.index == i and len(one.embedding) == 32
        assert np.allclose(one.embedding, other.embedding)
    assert len({tuple(entry.embedding) for entry in floats.data}) == 20
    assert made.usage.prompt_tokens == sum(map(len, texts))
    one = client.embeddings.create(model="vectors", input=texts[7], encoding_format="float")
    assert np.allclose(one.data[0].embedding, floats.data[7].embedding, atol=1e-6)


@pytest.mark.parametrize(
    "path, change, status, code, word",
    [
        (COMPLETIONS, {"model": "none"}, 404, "model_not_found", "no service 'none'"),
        (COMPLETIONS, {"model": "vectors"}, 400, None, "generates no text"),
        (COMPLETIONS, {"prompt": "x" * 49}, 400, "context_length_exceeded", "takes 48"),
        (COMPLETIONS, {"prompt": "x" * 10**6}, 400, "context_length_exceeded", "48 tokens"),
        (COMPLETIONS, {"prompt": [96]}, 400, None, "above 95"),
        (COMPLETIONS, {"max_tokens": 25}, 400, "context_length_exceeded", "24 new ones"),
        (COMPLETIONS, {"max_tokens": 10**15}, 400, "context_length_exceeded", "24 new ones"),
        (COMPLETIONS, {"prompt": "x" * 48, "max_tokens": 18}, 400, "context_length_exceeded", "17"),
        (COMPLETIONS, {"max_tokens": "5"}, 400, None, "whole number"),
        (COMPLETIONS, {"logprobs": 3}, 400, "unsupported_parameter", "logprobs"),
        (COMPLETIONS, {"model": "greedy", "logprobs": 0}, 400, "unsupported_parameter", "logprobs"),
        (COMPLETIONS, {"model": "greedy", "temperature": 0.5}, 400, "unsupported_parameter", "no"),
        (COMPLETIONS, {"model": "greedy", "top_p": 0.5}, 400, "unsupported_parameter", "top_p"),
        (CHAT, {}, 400, "unknown_parameter", "prompt"),
        ("/v1/embeddings", {}, 400, "unknown_parameter", "prompt"),
        ("/v1/none", {}, 404, None, "Not Found"),
        ("/v1/models", {}, 405, None, "Method Not Allowed"),
    ],
)
def test_errors_name_what_is_wrong(rank, path, change, status, code, word):
    found, answer, _ = ask(rank, path, **change)
    assert found == status, answer
    assert answer["error"]["code"] == code and word in answer["error"]["message"]


def test_a_refused_chat_and_wrong_vectors(rank):
    wrong = {"model": "vectors", "input": ["x" * 65]}
    assert rank.ask("/v1/embeddings", json.dumps(wrong).encode())[0] == 400
    wrong = {"model": "vectors", "input": [[1, 2]]}
    assert rank.ask("/v1/embeddings", json.dumps(wrong).encode())[0] == 400
    wrong = {"model": "vectors", "input": "x", "dimensions": 3}
    assert rank.ask("/v1/embeddings", json.dumps(wrong).encode())[0] == 400
    wrong = {"model": "assistant", "messages": [{"role": "user", "content": "x" * 60}]}
    status, answer, _ = rank.ask(CHAT, json.dumps(wrong).encode())
    assert status == 400 and answer["error"]["param"] == "messages"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model": 1}'])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/v1/embeddings"])
def test_malformed_bodies_are_refused_and_the_next_is_right(rank, path, body):
    status, answer, _ = rank.ask(path, body)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"
    assert ask(rank)[0] == 200


def test_without_a_token_nothing_is_told(rank):
    status, answer, _ = rank.ask("/v1/models", Authorization="Bearer wrong")
    assert status == 401 and answer["error"]["code"] == "invalid_api_key"


def test_a_service_that_is_full_says_when_to_come_again(rank):
    rank.pause = 0.05
    try:
        status, answer, headers = ask(rank, n=60, max_tokens=4)
    finally:
        rank.pause = 0.0
    assert status == 503 and headers["retry-after"] == "1"
    assert answer["error"]["code"] == "overloaded"
    until_true(lambda: quiet(rank))
    assert ask(rank)[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_sequences(rank, client, stream):
    rank.pause = 0.1
    try:
        connection = rank.connect()
        body = {"model": "assistant", "prompt": "Hi", "n": 4, "max_tokens": 24, "stream": stream}
        data = json.dumps(body).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: job\r\nContent-Length: {len(data)}\r\n"
        head += f"Authorization: Bearer {rank.endpoint.token}\r\n\r\n"
        before = rank.calls
        connection.sendall(head.encode() + data)
        got = b""
        while stream and b"data: " not in got:
            got += connection.recv(4096)
        until_true(lambda: rank.calls > before + 2)
        connection.close()
        until_true(lambda: quiet(rank), seconds=10)
        assert rank.calls < before + 20  # of 24
    finally:
        rank.pause = 0.0
    assert ask(rank)[0] == 200


def test_a_model_that_fails_in_mid_stream_says_so(rank, client, monkeypatch):
    steps = rank.generators[0]
    rank.pause = 0.02
    events, got = client.completions.create(model="assistant", prompt="Hi", stream=True), []
    with pytest.raises(openai.APIError, match="broken"):
        for event in events:
            got.append(event)
            monkeypatch.setattr(steps._decoder, "_engine", _broken)
    monkeypatch.undo()
    rank.pause = 0.0
    assert got and ask(rank)[0] == 200
    until_true(lambda: quiet(rank))


def _broken(**inputs):
    raise RuntimeError("broken")


def test_streams_of_many_clients_flow_together(rank, gpt):
    """Each step of the model costs one request, whatever the number of clients."""
    rank.pause = 0.02
    calls, requests, prompts = rank.calls, len(rank.seen), [f"number {i}" for i in range(8)]
    try:
        texts = asyncio.run(_streams(rank, prompts))
    finally:
        rank.pause = 0.0
    assert texts == [greedy(gpt, prompt, 24) for prompt in prompts]
    calls, requests = rank.calls - calls, len(rank.seen) - requests
    assert calls < 24 * 2 and requests <= calls + 20, (calls, requests)
    assert rank.most == 8
    until_true(lambda: quiet(rank))


async def _streams(rank, prompts):
    client = openai.AsyncOpenAI(**arguments(rank, httpx2.AsyncClient, httpx2.AsyncHTTPTransport))

    async def one(prompt):
        events = await client.completions.create(
            model="assistant", prompt=prompt, max_tokens=24, temperature=0, stream=True
        )
        return "".join([event.choices[0].text async for event in events])

    async with client:
        return await asyncio.gather(*map(one, prompts))


def test_more_clients_than_the_model_takes_wait_for_their_turn(rank, gpt):
    prompts = [f"client {i}" for i in range(20)]
    texts = asyncio.run(_streams(rank, prompts))
    assert texts == [greedy(gpt, prompt, 24) for prompt in prompts]
    until_true(lambda: quiet(rank))


@pytest.mark.takes_long
def test_a_request_that_takes_too_long_ends(folder, gpt):
    with LanguageRank(folder, {"assistant": table()}, request_timeout_s=0.5) as rank:
        until_true(lambda: answers(rank))  # the tokenizer is loaded
        rank.pause = 0.2
        begin = time.monotonic()
        status, answer, _ = ask(rank, max_tokens=24)
        assert status == 504 and "0.5 s" in answer["error"]["message"]
        assert time.monotonic() - begin < 3
        until_true(lambda: quiet(rank))


def answers(rank):
    try:
        return ask(rank, max_tokens=1)[0] == 200
    except TimeoutError:
        return False
