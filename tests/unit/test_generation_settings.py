"""Fields of generation_config.json have the effect of `generate()`, or are refused by name."""

import json
import logging

import numpy as np
import pytest
import torch
from language_models import VOCABULARY, greedy, llama, tokenizer

from mpiserve import backends
from mpiserve.config import Config
from mpiserve.errors import ArgumentError, ModelError

WIDTH, ROOM = 9, 12
TEMPERATURE = {"name": "temperature", "dtype": "float32", "shape": [-1]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("settings") / "llama")


@pytest.fixture
def make(tmp_path, plain):
    """Write the model with such a generation_config.json; return it and its service."""

    def build(fields, *more, text=False, options=None):
        plain.save_pretrained(tmp_path / "llama")
        if text:
            tokenizer(tmp_path / "llama")
        (tmp_path / "llama/generation_config.json").write_text(json.dumps(fields))
        inputs = [
            {"name": "tokens", "dtype": "int64", "shape": [-1, WIDTH]},
            {"name": "lengths", "dtype": "int64", "shape": [-1]},
            *more,
        ]
        outputs = [
            {"name": "tokens", "dtype": "int64", "shape": [-1, ROOM]},
            {"name": "lengths", "dtype": "int64", "shape": [-1]},
        ]
        table = {"task": "generate", "model": "llama", "backend": "torch", "inputs": inputs}
        table |= {"outputs": outputs, "options": options or {}}
        config = Config.from_dict({"service": {"s": table}}, folder=tmp_path)
        backend = backends.create(config.services[0])
        backend.load()
        return backend

    return build


def prompts():
    random = np.random.default_rng(3)
    lengths = np.array([9, 2, 5, 1])
    return random.integers(1, VOCABULARY, (4, WIDTH)), lengths


def lines(backend):
    new, counts = backend.run(prompts())
    return [row[:count].tolist() for row, count in zip(new, counts, strict=True)]


def reference(backend, **more):
    """What generate() of the same directory gives for each prompt alone."""
    import transformers

    path = backend.service.folder / "llama"
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    if "tokenizer" in more:
        more = {"tokenizer": transformers.AutoTokenizer.from_pretrained(path)}
    found = []
    for prompt, length in zip(*prompts(), strict=True):
        ids = torch.tensor(prompt[None, :length])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=ROOM,
            do_sample=False,
            **more,
        )
        found.append(out[0, length:].tolist())
    return found


@pytest.fixture(scope="module")
def free(plain):
    return [greedy(plain, prompt[:length], ROOM) for prompt, length in zip(*prompts(), strict=True)]


def test_several_end_tokens_end_a_sequence(make, free):
    stops = [free[0][2], free[1][4], free[2][3]]
    backend = make({"eos_token_id": stops, "pad_token_id": 5})
    got = lines(backend)
    assert got == reference(backend)
    assert [len(line) for line in got] != [ROOM] * 4
    new, counts = backend.run(prompts())
    assert (new[np.arange(ROOM) >= counts[:, None]] == 5).all(), "the rest is the pad token"


HONOURED = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": "SEEN"},
    {"begin_suppress_tokens": "SEEN"},
    {"bad_words_ids": "WORDS"},
    {"sequence_bias": [[[3], 40.0]]},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": 9},
    {"min_new_tokens": 6, "eos_token_id": "SEEN"},
    {"min_length": 9, "eos_token_id": "SEEN"},
    {"exponential_decay_length_penalty": [2, 1.5], "eos_token_id": "SEEN"},
    {"encoder_repetition_penalty": 1.9},
    {"encoder_no_repeat_ngram_size": 1},
    {"renormalize_logits": True, "remove_invalid_values": True, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("fields", HONOURED, ids=lambda fields: next(iter(fields)))
def test_a_field_is_honoured_as_generate_does(make, free, fields):
    seen = sorted({line[1] for line in free} | {line[0] for line in free})
    known = {"SEEN": seen, "WORDS": [[token] for token in seen]}
    fields = {name: known.get(str(value), value) for name, value in fields.items()}
    backend = make(fields)
    got = lines(backend)
    assert got == reference(backend)
    if "renormalize_logits" not in fields:
        assert got != free, "it makes a difference"


def test_strings_that_stop(make, free):
    backend = make({"stop_strings": [chr(32 + free[0][3])]}, text=True)
    got = lines(backend)
    assert got == reference(backend, tokenizer=True)
    assert len(got[0]) <= 4
    with pytest.raises(ModelError, match="no tokenizer"):
        (backend.service.folder / "llama/tokenizer.json").unlink()
        (backend.service.folder / "llama/tokenizer_config.json").unlink()
        make({"stop_strings": ["x"]})


REFUSED = [
    {"num_beams": 4},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"guidance_scale": 2.0},
    {"token_healing": True},
    {"max_time": 3.0},
    {"num_return_sequences": 2, "do_sample": True},
    {"cache_implementation": "quantized"},
    {"dola_layers": "high"},
]


@pytest.mark.parametrize("fields", REFUSED, ids=lambda fields: next(iter(fields)))
def test_what_cannot_be_done_is_refused_by_name(make, fields):
    name = next(iter(fields))
    with pytest.raises(
        ModelError, match=rf"{name} = .* set service\.s\.options\.generation\.{name}"
    ):
        make(fields)


def test_an_option_takes_the_place_of_a_field(make, free):
    backend = make(
        {"num_beams": 4, "eos_token_id": free[0][2]}, options={"generation": {"num_beams": 1}}
    )
    assert lines(backend) == [
        line[: line.index(free[0][2]) + 1] if free[0][2] in line else line for line in free
    ]
    with pytest.raises(
        ArgumentError, match=r"options\.generation\.num_beam: .*did you mean 'num_beams'"
    ):
        make({}, options={"generation": {"num_beam": 1}})


def test_the_options_for_end_tokens_come_first(make, free):
    fields = {"eos_token_id": free[0][2]}
    assert lines(make(fields, options={"stop_tokens": []})) == free
    stop = free[0][5]
    assert (
        lines(make(fields, options={"stop_tokens": [stop]}))[0]
        == free[0][: free[0].index(stop) + 1]
    )


def test_the_end_token_of_config_json_counts_where_the_file_has_none(make, free, plain):
    plain.config.eos_token_id = free[0][4]
    try:
        assert lines(make({}))[0] == free[0][: free[0].index(free[0][4]) + 1]
    finally:
        plain.config.eos_token_id = None


def test_draws_are_left_to_requests_and_the_log_says_so(make, free, caplog):
    with caplog.at_level(logging.INFO, "mpiserve"):
        backend = make({"do_sample": True, "temperature": 0.7, "min_p": 0.1, "max_length": 4})
    assert lines(backend) == free
    said = [record.getMessage() for record in caplog.records if "do_sample" in record.getMessage()]
    assert len(said) == 1
    assert all(word in said[0] for word in ("temperature = 0.7", "min_p = 0.1", "max_length = 4"))
    with pytest.raises(ModelError, match="min_p = 0.1"):
        make({"do_sample": True, "min_p": 0.1}, TEMPERATURE)


def test_end_tokens_inside_a_prompt_do_not_end_it(make, free):
    tokens, lengths = prompts()
    backend = make({"eos_token_id": [int(tokens[0, 3]), free[0][6]]})
    assert lines(backend) == reference(backend)
    assert lines(backend)[0]
