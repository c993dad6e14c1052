"""The words of the OpenAI API at the side of a server, and text that comes token by token."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from mpiserve.gateway.text_parts import TextParts
from mpiserve.wire import openai
from mpiserve.wire import openai_server as wire
from mpiserve.wire.json_body import WireError

GOOD = {"model": "m", "prompt": "Hi"}
USER = {"role": "user", "content": "Hi"}


def read(kind="completions", **more):
    table = GOOD if kind == "completions" else {"model": "m", "messages": [USER]}
    return wire.read_generation(kind, json.dumps(table | more).encode())


def test_a_request_has_the_defaults_of_the_api():
    made = read()
    assert made.prompts == ["Hi"] and made.max_tokens is None and made.n == 1
    assert made.stop == () and not made.stream and not made.include_usage and not made.sampling
    assert read("chat").prompts == [[USER]]


def test_fields_are_read():
    made = read(
        max_tokens=5, n=2, stop="a", stream=True, stream_options={"include_usage": True},
        temperature=0, top_p=0.5, top_k=-1, seed=7, user="me", echo=False, presence_penalty=0.0,
        logit_bias={}, best_of=None,
    )  # fmt: skip
    assert made[2:7] == (5, 2, ("a",), True, True)
    assert made.sampling == {"temperature": 0, "top_p": 0.5, "top_k": 0, "seed": 7}
    assert read(top_p=0).sampling["top_p"] == wire.LEAST_TOP_P
    assert read("chat", max_completion_tokens=3, max_tokens=9).max_tokens == 3


@pytest.mark.parametrize(
    "kind, fields, number",
    [
        ("completions", {}, None),
        ("completions", {"logprobs": False, "top_logprobs": 0}, None),
        ("completions", {"logprobs": 0}, 0),
        ("completions", {"logprobs": 5}, 5),
        ("chat", {"logprobs": False, "top_logprobs": 0}, None),
        ("chat", {"logprobs": True}, 0),
        ("chat", {"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_likelihoods_are_a_number_or_a_word_and_a_number(kind, fields, number):
    assert read(kind, **fields).logprobs == number


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"top_logprobs": 2}, "'logprobs': true"),
        ({"logprobs": True, "top_logprobs": 21}, "0 to 20"),
        ({"logprobs": 3}, "true or false"),
    ],
)
def test_a_chat_with_wrong_likelihoods_is_refused(fields, word):
    with pytest.raises(wire.FieldError, match=word):
        read("chat", **fields)


@pytest.mark.parametrize(
    "prompt, prompts",
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_is_text_or_tokens_or_several(prompt, prompts):
    assert read(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    "field, value",
    [
        *[("prompt", bad) for bad in ("", [], [""], [1.5], [[]], {}, 3, [[1], [True]], [-1])],
        *[("prompt", ["a"] * 1025), ("n", 1025)],
        *[("max_tokens", bad) for bad in (0, -1, 1.5, "5", True, 10**30)],
        *[("n", bad) for bad in (0, "1", 1.0)],
        *[("stop", bad) for bad in (1, "", [""], ["a"] * 5, [1])],
        *[("temperature", bad) for bad in (-1, 2.1, "1", True, [1])],
        *[("top_p", bad) for bad in (-0.1, 1.1, "1")],
        *[("top_k", bad) for bad in (-2, 1.5)],
        *[("seed", bad) for bad in (1.5, "1", 2**63)],
        *[("stream", bad) for bad in (1, "true")],
        *[("stream_options", bad) for bad in (1, [])],
        *[("model", bad) for bad in (1, None, "")],
        *[("logprobs", 6), ("logprobs", True), ("top_logprobs", 1)],
        *[("echo", True), ("suffix", "x"), ("best_of", 2), ("logit_bias", 1)],
        *[("presence_penalty", 0.5), ("nonsense", 1), ("messages", [USER])],
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(wire.FieldError) as error:
        read(**{field: value})
    assert error.value.param == field and f"'{field}'" in str(error.value)


@pytest.mark.parametrize(
    "messages",
    [
        *(None, [], "Hi", [1], [{}], [{"role": "user"}], [{"role": 1, "content": "a"}]),
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 1}]}],
    ],
)
def test_wrong_messages_are_refused(messages):
    with pytest.raises(wire.FieldError, match="messages"):
        read("chat", messages=messages)


def test_content_in_parts_is_one_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (messages,) = read("chat", messages=[{"role": "user", "content": parts}]).prompts
    assert messages == [{"role": "user", "content": "ab"}]


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b'"x"', b"\xff", b"[" * 100_000, b"{}"])
def test_what_is_no_request_is_refused(body):
    with pytest.raises(WireError):
        wire.read_generation("completions", body)
    with pytest.raises(WireError):
        wire.read_embeddings(body)


@pytest.mark.parametrize("kind", openai.COMPLETIONS)
def test_the_client_of_this_project_reads_the_answers(kind):
    answers = wire.Answers(kind, "m", "1", 2, stream=False)
    body = answers.answer([wire.Choice(0, "text", "stop")], 3, 4)
    assert openai.completion(kind, body) == ("text", 4)
    assert json.loads(body)["usage"]["total_tokens"] == 7


def test_the_client_of_this_project_is_understood():
    body = openai.completion_request("chat", "m", "Hi", "Be brief.", {"max_tokens": 3})
    made = wire.read_generation("chat", body)
    assert [message["role"] for message in made.prompts[0]] == ["system", "user"]
    made = wire.read_embeddings(openai.embeddings_request("m", ["a", "b"], {}))
    assert made == ("m", ["a", "b"], False, None)


def test_vectors_in_both_forms():
    x = np.array([[1.5, -2], [0, 3]], np.float32)
    assert openai.embeddings(wire.embeddings("m", x, False, 1)) == x.tolist()
    entry = json.loads(wire.embeddings("m", x, True, 1))["data"][1]["embedding"]
    assert np.frombuffer(base64.b64decode(entry), "<f4").tolist() == [0, 3]


@pytest.mark.parametrize(
    "status, error, code",
    [
        (400, wire.FieldError("n", "is 0"), None),
        (400, wire.FieldError("n", "is 0", "unknown_parameter"), "unknown_parameter"),
        (401, "a token is needed", "invalid_api_key"),
        (404, "Not Found", None),
        (404, ValueError("no service 'x'"), "model_not_found"),
        (503, ValueError("too many"), "overloaded"),
        (500, ValueError("the model failed"), None),
    ],
)
def test_errors_have_the_form_of_the_api(status, error, code):
    entry = json.loads(wire.error_body(status, error))["error"]
    assert entry["code"] == code and entry["message"] == str(error)
    assert entry["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert entry["param"] == ("n" if status == 400 else None)


# ---- text of tokens


def parts_of(data, *stops, size=1):
    """The parts of a text whose tokens are bytes, or pieces of it."""
    tokens = [data[i : i + size] for i in range(0, len(data), size)]
    text = TextParts(lambda some: b"".join(some).decode(errors="replace"), stops)
    found = []
    for token in tokens:
        found.append(text.add(token))
        if text.stopped:
            break
    return [*found, text.end()], text.stopped


def test_a_character_comes_when_it_is_whole():
    parts, _ = parts_of("aé😀b".encode())
    assert parts == ["a", "", "é", "", "", "", "😀", "b", ""]


def test_bytes_that_are_no_text_come_all_the_same():
    parts, _ = parts_of(b"\xff" * 20)
    assert "".join(parts) == "\ufffd" * 20 and parts[7]


@pytest.mark.parametrize(
    "data, stops, text, stopped",
    [
        ("one END two", ["END"], "one ", True),
        ("one EN", ["END"], "one EN", False),
        ("one ENEND", ["END"], "one EN", True),
        ("a.b", [".b", "."], "a", True),
        ("aab", ["ab"], "a", True),
        ("END", ["END"], "", True),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_text_ends_before_a_stop(data, stops, text, stopped, size):
    parts, ended = parts_of(data.encode(), *stops, size=size)
    assert "".join(parts) == text and ended == stopped


def test_what_may_be_a_stop_waits():
    parts, _ = parts_of(b"a EN b", "END")
    assert parts == ["a", " ", "", "", "EN ", "b", ""]
