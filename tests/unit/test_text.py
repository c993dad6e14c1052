"""Tensors of text, alone and in and out of language models with a tokenizer of their own."""

import numpy as np
import pytest
import torch
from language_models import bert, greedy, llama, tokenizer

from mpiserve import ArgumentError, ModelError, backends, decode_text, encode_text
from mpiserve.backends.language.tokenizer import Texts
from mpiserve.config import Config

BYTES, ROOM = 40, 12
TEXT = {"name": "text", "dtype": "uint8", "shape": [-1, BYTES]}
ANSWER = TEXT | {"shape": [-1, ROOM]}
LENGTHS = {"name": "lengths", "dtype": "int64", "shape": [-1]}
VECTOR = {"name": "vector", "dtype": "float32", "shape": [-1, 32]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def models(folder):
    made = {name: make(folder / name) for name, make in (("llama", llama), ("bert", bert))}
    for name in made:
        tokenizer(folder / name)
    return made


@pytest.fixture
def make(folder, models):
    def build(**table):
        table = {"backend": "torch", "inputs": [TEXT]} | table
        service = Config.from_dict({"service": {"s": table}}, folder=folder).services[0]
        made = backends.create(service)
        made.load()
        return made

    return build


def ids(text):
    return [95 if letter == "é" else ord(letter) - 32 for letter in text]


def letters(tokens):
    return "".join("é" if token == 95 else chr(32 + token) for token in tokens)


def test_texts_become_rows_and_rows_texts():
    texts = ["", "flame", "température", "0123456789ab"]
    rows = encode_text(texts, 12)
    assert rows.shape == (4, 12)
    assert rows.dtype == np.uint8
    assert rows[2].tobytes() == "température".encode()
    assert decode_text(rows) == texts
    assert decode_text(rows[:, ::-1][:1]) == [""]
    assert encode_text([], 3).shape == (0, 3)


def test_bytes_that_are_no_text_are_seen():
    assert decode_text(np.array([[65, 255, 66, 0, 67]], np.uint8)) == ["A\ufffdB"]


def test_texts_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match="text 1 has 7 bytes of UTF-8, .* room for 5"):
        encode_text(["fits", "études"], 5)
    with pytest.raises(ArgumentError, match="text 0 has a zero byte"):
        encode_text(["a\0b"], 5)


def test_text_goes_in_and_out_of_a_language_model(make, models):
    backend = make(model="llama", task="generate", outputs=[ANSWER, LENGTHS])
    texts = ["was it stable?", "température", ""]
    backend.steps.begin(7, 0, (encode_text(texts, BYTES),))
    while 7 not in (said := backend.steps.step()):
        pass
    expected = [greedy(models["llama"], ids(text), ROOM) for text in texts[:2]]
    assert said[7]["lengths"].tolist() == [ROOM, ROOM, 0]
    got = decode_text(said[7]["text"])
    assert got[2] == ""
    for text, tokens in zip(got, expected, strict=False):
        assert letters(tokens).encode().startswith(text.encode())
        assert len(text.encode()) in (ROOM - 1, ROOM)


def test_a_text_that_is_too_long_ends_with_a_whole_character(folder, models):
    rows = Texts(folder / "llama", 512, cuts=False).write([[95, 95], [95]], 3)
    assert decode_text(rows) == ["é", "é"]


def test_tokens_and_text_can_both_be_had(make, models):
    tokens = {"name": "tokens", "dtype": "int64", "shape": [-1, 3]}
    backend = make(model="llama", task="generate", outputs=[tokens, ANSWER])
    given = encode_text(["ignite"], BYTES)
    numbers, text = backend.run((given,))
    assert numbers.tolist() == [greedy(models["llama"], ids("ignite"), 3)]
    assert decode_text(text) == [letters(numbers[0])]


def test_texts_are_embedded_as_their_tokens_are(make, models):
    backend = make(model="bert", task="embed", outputs=[VECTOR])
    texts = ["the flow is steady", "it burns"]
    (vectors,) = backend.run((encode_text(texts, BYTES),))
    for text, vector in zip(texts, vectors, strict=True):
        with torch.inference_mode():
            states = models["bert"](torch.tensor([ids(text)])).last_hidden_state[0]
        right = torch.nn.functional.normalize(states.mean(0), dim=0)
        np.testing.assert_allclose(vector, right, atol=1e-5)


def test_what_a_model_has_no_room_for_is_cut_where_it_is_embedded_and_refused_elsewhere(make):
    long = TEXT | {"shape": [-1, 1000]}
    (vectors,) = make(model="bert", task="embed", inputs=[long], outputs=[VECTOR]).run(
        (encode_text(["b" * 64, "b" * 64 + "urns" * 100], 1000),)
    )
    np.testing.assert_array_equal(vectors[0], vectors[1])
    backend = make(model="llama", task="generate", inputs=[long], outputs=[ANSWER])
    with pytest.raises(ModelError, match="a text has 600 tokens; the model accepts 512"):
        backend.steps.begin(1, 0, (encode_text(["x" * 600], 1000),))


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"inputs": [TEXT, LENGTHS]}, "has no 'lengths'"),
        ({"inputs": [TEXT, TEXT | {"name": "tokens", "dtype": "int64"}]}, "not both"),
        ({"inputs": [LENGTHS]}, "needs an input 'tokens' or an input 'text'"),
        ({"inputs": [TEXT | {"dtype": "int8"}]}, "a tensor of uint8"),
        ({"outputs": [LENGTHS]}, "the outputs 'tokens' or 'text'"),
        ({"model": "silent"}, "silent: no tokenizer, which .text. tensors need"),
    ],
)
def test_mistakes_are_named(make, folder, table, match):
    if table.get("model") == "silent":
        llama(folder / "silent")
    with pytest.raises(ModelError, match=match):
        make(**{"model": "llama", "task": "generate", "outputs": [ANSWER]} | table)
