"""Architectures of language models, on small random ones, beside `generate()` of transformers.

Those of QUICK in any case; with MPISERVE_ALL_MODELS=1 all that transformers has, and the table of
docs/guide/language-models.md is compared with what is seen (tests/architectures.py writes it).
"""

import os
import warnings
from pathlib import Path

import architectures
import numpy as np
import pytest
import torch
from language_models import bert, greedy

from mpiserve import backends
from mpiserve.backends.language import model_limits, self_check
from mpiserve.config import Config
from mpiserve.errors import ModelError

TABLE = Path(__file__).parents[2] / "docs/guide/language-models.md"
QUICK = {
    "llama": "together",
    "gpt2": "together",
    "opt": "together",  # learned positions, with an offset
    "bloom": "together",  # ALiBi
    "mistral": "together",  # a window
    "gemma3_text": "together",  # a window in some layers
    "gpt_neo": "together",  # a window of its own kind
    "gpt_neox": "together",
    "mixtral": "together",  # experts
    "falcon": "together",
    "phi": "together",
    "xglm": "together",
    "mamba2": "together",  # a state that is no cache of keys and values
    "qwen3_next": "together",  # some layers of either kind
    "mamba": "one by one",
    "rwkv": "one by one",
    "bart": "one by one",  # positions are counted in columns
    "recurrent_gemma": "refused",  # keeps its state in the module
}
ALL = os.environ.get("MPISERVE_ALL_MODELS") == "1"


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", QUICK)
def test_an_architecture_is_served_rightly_or_refused(name, tmp_path):
    said = architectures.outcome(name, tmp_path / name)
    assert said.split(":")[0] == QUICK[name], said


@pytest.mark.skipif(not ALL, reason="MPISERVE_ALL_MODELS=1 runs all architectures, for minutes")
@pytest.mark.timeout(1800)
def test_all_architectures_are_as_the_table_says(tmp_path):
    rows = architectures.table(tmp_path)
    wrong = [row for row in rows if "| wrong" in row]
    assert not wrong
    assert TABLE.read_text().endswith("\n".join(rows) + "\n")


def test_the_table_has_every_quick_one():
    lines = TABLE.read_text().splitlines()
    for name, outcome in QUICK.items():
        assert any(line.startswith(f"| `{name}` |") and f"| {outcome}" in line for line in lines)


def serve(path, task="generate", width=12, room=12, dtype="float32", output="tokens"):
    shape = {"tokens": ["int64", [-1, room]], "vector": ["float32", [-1, room]]}[output]
    table = {
        "task": task,
        "model": path.name,
        "backend": "torch",
        "dtype": dtype,
        "inputs": [
            {"name": "tokens", "dtype": "int64", "shape": [-1, width]},
            {"name": "lengths", "dtype": "int64", "shape": [-1]},
        ],
        "outputs": [{"name": output, "dtype": shape[0], "shape": shape[1]}],
    }
    config = Config.from_dict({"service": {"s": table}}, folder=path.parent)
    backend = backends.create(config.services[0])
    backend.load()
    return backend


def test_a_prompt_that_has_no_positions_costs_itself_alone(tmp_path):
    model = architectures.save("gpt2", tmp_path / "gpt2", max_position_embeddings=16)
    steps = serve(tmp_path / "gpt2").steps
    tokens = np.random.default_rng(0).integers(3, 64, (3, 12))
    for key, length in enumerate((3, 5)):
        steps.begin(key, 0, (tokens[key : key + 1], np.array([length])))
    text = "12 tokens and 12 new ones; the model has 16 positions: max_new_tokens may be 5 at most"
    with pytest.raises(ModelError, match=text):
        steps.begin(2, 0, (tokens[2:], np.array([12])))
    said = {}
    while len(said) < 2:
        said |= steps.step()
    for key, length in enumerate((3, 5)):  # the last of these uses all 16
        assert said[key]["tokens"][0].tolist() == greedy(model, tokens[key, :length], 12)


@pytest.mark.parametrize("task", ["generate", "embed"])
@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_encoder_decoders_are_refused_by_name(tmp_path, task, name):
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, num_layers=1, d_ff=16
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    model.save_pretrained(tmp_path / "both")
    with pytest.raises(ModelError, match=f"both: {name}ForConditionalGeneration has an encoder"):
        serve(tmp_path / "both", task)


def test_a_model_that_looks_ahead_is_refused_by_name(tmp_path):
    architectures.save("bert", tmp_path / "bert", is_decoder=False)
    with pytest.raises(ModelError, match=r"cannot serve BertLMHeadModel: .* % off"):
        serve(tmp_path / "bert")


def test_long_rope_runs_one_by_one(tmp_path):
    # Its positions are other ones for all of a batch, when one sequence gets long.
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16,
    }
    name = "phi3"
    settings = {"rope_parameters": rope, "original_max_position_embeddings": 16}
    model = architectures.save(name, tmp_path / name, **settings)
    backend = serve(tmp_path / name, room=10)
    tokens = np.random.default_rng(1).integers(3, 64, (2, 12))
    (new,) = backend.run((tokens, np.array([12, 3])))
    assert type(backend.steps._decoder) is self_check.SingleDecoder
    for row, prompt, length in zip(new, tokens, (12, 3), strict=True):
        assert row.tolist() == greedy(model, prompt[:length], 10)


def test_bfloat16_is_not_taken_for_a_fault(tmp_path):
    for name in ("llama", "mixtral", "mamba2"):
        architectures.save(name, tmp_path / name)
        backend = serve(tmp_path / name, dtype="bfloat16")
        assert type(backend.steps._decoder) is self_check.BatchDecoder


def test_the_cache_has_the_name_that_the_model_gives_it(tmp_path):
    # transformers 5.24 calls it "cache", and 5.40 knows no other name.
    model = architectures.model("llama")

    class New:
        config, parameters = model.config, model.parameters

        def forward(self, input_ids, cache, attention_mask, position_ids, use_cache):
            pass

    sequences = self_check.BatchDecoder(New(), None, frozenset(), 1)
    assert sequences._cache_name == "cache"
    assert self_check.BatchDecoder(model, None, frozenset(), 1)._cache_name in (
        "cache",
        "past_key_values",
    )


def test_tokens_are_those_that_the_model_has_vectors_for(tmp_path):
    model = architectures.model("llama")
    model.resize_token_embeddings(40)
    model.config.vocab_size = 64
    assert model_limits.vocabulary(model) == 40


EMBEDS = ["llama", "mistral", "mamba", "xlm-roberta", "bert", "gpt2", "rwkv"]


@pytest.mark.parametrize("name", EMBEDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vectors_do_not_depend_on_the_other_rows(tmp_path, name, dtype):
    import transformers

    made = architectures.save(name, tmp_path / name)
    backend = serve(tmp_path / name, "embed", 32, 32, dtype, output="vector")
    tokens, lengths = np.random.default_rng(2).integers(3, 64, (5, 32)), np.array([12, 1, 0, 32, 7])
    (vectors,) = backend.run((tokens, lengths))
    assert not vectors[2].any(), "no tokens, no vector"
    alone = [backend.run((tokens[i : i + 1], lengths[i : i + 1]))[0][0] for i in range(5)]
    np.testing.assert_allclose(vectors, alone, atol=1e-5 if dtype == "float32" else 0.05)
    if dtype == "float32":
        base = transformers.AutoModel.from_pretrained(tmp_path / name).eval()
        assert made.dtype == base.dtype
        with torch.inference_mode():
            states = base(torch.from_numpy(tokens[:1, :12])).last_hidden_state[0].mean(0)
        wanted = torch.nn.functional.normalize(states, dim=0)
        np.testing.assert_allclose(vectors[0], wanted, atol=1e-5)


def test_a_row_that_has_no_positions_is_named(tmp_path):
    bert(tmp_path / "bert")
    backend = serve(tmp_path / "bert", "embed", 70, 32, output="vector")
    with pytest.raises(ModelError, match="a row of 70 tokens; the model has 64 positions"):
        backend.run((np.ones((2, 70), np.int64), np.array([3, 70])))
