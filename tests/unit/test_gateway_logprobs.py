"""How likely tokens are, as the client of the OpenAI API sees it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest
from language_models import greedy, logprobs
from language_rank import LanguageRank, ids, models, table

from mpiserve.gateway.logprobs import TokenTexts, bytes_of
from mpiserve.wire.openai_logprobs import LEAST, Logprob, TokenText, of_chat, of_completion
from mpiserve.wire.openai_server import FieldError

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson"):
    pytest.importorskip(package)
from mpiserve.gateway.openai_api import OpenAIRoutes, _Work  # noqa: E402

openai = pytest.importorskip("openai")
httpx2 = pytest.importorskip("httpx2")

# The quick ones are test_likelihoods, and one in test_gateway_openai.
long = pytest.mark.takes_long
HI = [{"role": "user", "content": "Hi"}]
CHAT_PROMPT = "user: Hi assistant:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("logprobs")


@pytest.fixture(scope="module")
def gpt(folder):
    return models(folder)


@pytest.fixture(scope="module")
def rank(folder, gpt):
    services = {
        "likely": table(likeliest=3),
        "whole": table(streams=False, likeliest=3),
        "own": table(likeliest=0),
        "plain": table(),
    }
    with LanguageRank(folder, services, request_timeout_s=20.0) as made:
        yield made
    assert made.status == 0


@pytest.fixture
def client(rank):
    path = rank.endpoint.url.removeprefix("unix:")
    http = httpx2.Client(transport=httpx2.HTTPTransport(uds=path))
    token = rank.endpoint.token
    with openai.OpenAI(
        base_url="http://job/v1", api_key=token, http_client=http, max_retries=0
    ) as made:
        yield made


def letter(token):
    return {95: "é", 31: "?"}.get(token, chr(token + 32))


def reference(gpt, prompt, count):
    """Return the likeliest tokens, and the logarithms of all probabilities at each place."""
    tokens = greedy(gpt, ids(prompt), count)
    return tokens, logprobs(gpt, ids(prompt), tokens)


def best(row, number):
    return {letter(int(i)): row[i] for i in np.argsort(row)[::-1][:number]}


def same(one, other):
    assert one.keys() == other.keys()
    assert all(abs(one[key] - other[key]) < 1e-4 for key in one), (one, other)


@pytest.mark.parametrize("name", ["likely", "whole"])
@long
def test_a_completion_has_those_of_its_tokens(client, gpt, name):
    tokens, wanted = reference(gpt, "Hi", 8)
    made = client.completions.create(
        model=name, prompt="Hi", temperature=0, max_tokens=8, logprobs=2
    )
    told = made.choices[0].logprobs
    assert told.tokens == [letter(token) for token in tokens]
    assert np.allclose(told.token_logprobs, wanted[range(8), tokens], atol=1e-4)
    for row, seen in zip(wanted, told.top_logprobs, strict=True):
        same(seen, best(row, 2))  # greedy: the token is one of them
    # The special token "?" is no text, so that the next one begins at its place.
    begins = np.cumsum([0, *(token != 31 for token in tokens)])[:-1]
    assert told.text_offset == begins.tolist()


@long
def test_a_stream_has_the_same_in_parts(client):
    options = {"model": "likely", "prompt": ["Hi", "Ho"], "temperature": 0, "logprobs": 3}
    whole = client.completions.create(**options)
    parts = [[], []]
    for event in client.completions.create(**options, stream=True):
        parts[event.choices[0].index].append(event.choices[0])
    for choice, mine in zip(whole.choices, parts, strict=True):
        assert len(mine) > 4
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [value for part in mine for value in getattr(part.logprobs, field)]
            wanted = getattr(choice.logprobs, field)
            if field == "token_logprobs":
                assert np.allclose(joined, wanted, atol=1e-4) and len(wanted) == 16
            elif field == "top_logprobs":
                for one, other in zip(joined, wanted, strict=True):
                    same(one, other)
            else:
                assert joined == wanted
        for part in mine[:-1]:  # each part tells of its own text
            shown = "".join(t for t in part.logprobs.tokens if t != "?")
            assert part.text == shown


@long
def test_a_chat_has_them_with_bytes(client, gpt):
    tokens, wanted = reference(gpt, CHAT_PROMPT, 10)
    options = {"model": "likely", "messages": HI, "temperature": 0, "max_tokens": 10}
    made = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    content = made.choices[0].logprobs.content
    assert [one.token for one in content] == [letter(token) for token in tokens]
    for one, row, token in zip(content, wanted, tokens, strict=True):
        assert bytes(one.bytes).decode() == one.token
        assert abs(one.logprob - row[token]) < 1e-4
        same({other.token: other.logprob for other in one.top_logprobs}, best(row, 2))
    events = client.chat.completions.create(**options, logprobs=True, stream=True)
    streamed = [one for event in events for one in event.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in content]
    assert all(one.top_logprobs == [] for one in streamed)


@long
def test_they_are_the_models_own_whatever_the_temperature(client, gpt):
    made = client.completions.create(
        model="likely", prompt="Hi", temperature=1.5, max_tokens=6, seed=4, logprobs=0
    )
    told = made.choices[0].logprobs
    tokens = [95 if text == "é" else ord(text) - 32 for text in told.tokens]
    wanted = logprobs(gpt, ids("Hi"), tokens)
    assert np.allclose(told.token_logprobs, wanted[range(6), tokens], atol=1e-4)
    assert [[*seen] for seen in told.top_logprobs] == [[text] for text in told.tokens]


@pytest.mark.parametrize("stream", [False, True])
@long
def test_tokens_of_a_stop_are_not_told(client, stream):
    options = {"model": "likely", "prompt": "Hi", "temperature": 0, "logprobs": 0}
    free = client.completions.create(**options).choices[0]
    stop = free.text[5:7]
    made = client.completions.create(**options, stop=stop, stream=stream)
    choices = [event.choices[0] for event in made] if stream else made.choices
    told = [text for choice in choices for text in choice.logprobs.tokens]
    text = "".join(choice.text for choice in choices)
    assert choices[-1].finish_reason == "stop" and text == free.text[: free.text.index(stop)]
    assert "".join(one for one in told if one != "?") == text


@long
def test_nothing_is_told_unasked(client):
    made = client.completions.create(model="likely", prompt="Hi", max_tokens=2)
    assert made.choices[0].logprobs is None
    made = client.chat.completions.create(model="likely", messages=HI, max_tokens=2)
    assert made.choices[0].logprobs is None


@pytest.mark.parametrize(
    "model, kind, fields, param, word",
    [
        ("plain", "completions", {"logprobs": 1}, "logprobs", "no output 'logprobs'"),
        ("plain", "chat/completions", {"logprobs": True}, "logprobs", "no output 'logprobs'"),
        ("own", "completions", {"logprobs": 1}, "logprobs", "room for 0"),
        ("likely", "completions", {"logprobs": 4}, "logprobs", "room for 3"),
        (
            *("likely", "chat/completions", {"logprobs": True, "top_logprobs": 4}),
            *("top_logprobs", "room for 3"),
        ),
    ],
)
@long
def test_a_service_that_cannot_tell_says_so(rank, model, kind, fields, param, word):
    base = {"messages": HI} if kind.startswith("chat") else {"prompt": "Hi"}
    body = json.dumps({"model": model, **base, **fields}).encode()
    status, answer, _ = rank.ask(f"/v1/{kind}", body)
    assert status == 400 and word in answer["error"]["message"]
    assert answer["error"]["param"] == param and answer["error"]["code"] == "unsupported_parameter"


@long
def test_own_likelihoods_need_no_likeliest_tokens(client):
    made = client.completions.create(model="own", prompt="Hi", max_tokens=3, logprobs=0)
    assert len(made.choices[0].logprobs.token_logprobs) == 3


# ---- the texts of single tokens


def byte_level():
    """A tokenizer with a token for each byte, and one for a word with its space."""
    import transformers
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"Ġflame": len(letters)}
    made = Tokenizer(kinds.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made), vocabulary


def with_metaspace():
    """A tokenizer that leaves out the space before a text's first token."""
    import transformers
    from tokenizers import Tokenizer, decoders
    from tokenizers import models as kinds

    vocabulary = {"a": 0, "▁flame": 1, "<0xC3>": 2}
    made = Tokenizer(kinds.WordLevel(vocabulary, "a"))
    made.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made), vocabulary


@pytest.mark.parametrize("kind, word", [(byte_level, "Ġflame"), (with_metaspace, "▁flame")])
def test_a_word_has_its_space_and_a_part_of_a_character_its_bytes(kind, word):
    tokenizer, vocabulary = kind()
    texts = TokenTexts(tokenizer)
    assert texts[vocabulary[word]] == TokenText(" flame", b" flame")
    part = vocabulary["<0xC3>" if "<0xC3>" in vocabulary else "Ã"]
    assert texts[part] == TokenText(r"bytes:\xc3", b"\xc3")


def test_pieces_that_have_no_bytes():
    assert bytes_of("<0xE2>") == b"\xe2" and bytes_of("ĠÃ©") == " é".encode()
    assert bytes_of("▁wort") is None and bytes_of("<0xQQ>") is None


def test_what_is_impossible_is_a_number_too():
    impossible = Logprob(TokenText("a", b"a"), -np.inf, [(TokenText("b", b"b"), -np.inf)], 0)
    assert of_chat([impossible])["content"][0]["logprob"] == LEAST
    assert of_chat([impossible])["content"][0]["top_logprobs"][0]["logprob"] == LEAST
    assert of_completion([impossible])["top_logprobs"] == [{"b": LEAST, "a": LEAST}]


# ---- which are told

PIECES = {0: b"a", 1: b"\xc3", 2: b"END\xc3", 3: b""}
END_TOKEN = 3


def work(limits, number=0, **more):
    """A request whose model has the tokens PIECES."""
    texts = {i: TokenText(repr(piece), piece) for i, piece in PIECES.items()}
    language = SimpleNamespace(stops={END_TOKEN}, service=SimpleNamespace(name="s"))
    request = SimpleNamespace(logprobs=number, stop=["END"])

    def decode(tokens):
        return b"".join(PIECES[token] for token in tokens).decode(errors="replace")

    return _Work(language, request, None, [{}], limits, 1, 0.0, decode, texts)


@pytest.mark.parametrize("tokens", [(0, 1, END_TOKEN), (0, 2)])
def test_a_token_that_ends_a_text_behind_a_part_of_a_character_is_not_told(tokens):
    new = {"tokens": np.array(tokens), "logprobs": np.zeros(len(tokens))}

    async def stream(row):
        yield new

    async def parts():
        hub = SimpleNamespace(streams={"s": SimpleNamespace(tokens=stream)})
        routes = OpenAIRoutes(hub, None, 1.0)
        return [part async for part, _ in routes._parts(work([len(tokens)]), 0)]

    (part,) = asyncio.run(parts())
    assert part.finish == "stop" and "END" not in part.text
    shown = [token for token in tokens if token < 2]
    assert [one.token.data for one in part.logprobs] == [PIECES[token] for token in shown]


def test_an_answer_has_room_for_so_many():
    work([4096], 20).check_told("top_logprobs")
    with pytest.raises(FieldError, match="lower it, n or max_tokens"):
        work([256] * 1024, 20).check_told("top_logprobs")
