"""Tasks of language models, on small ones with random weights, beside transformers itself."""

import copy
import shutil

import numpy as np
import pytest
import torch
from language_models import VOCABULARY, bert, greedy, llama

from mpiserve import backends
from mpiserve.config import Config
from mpiserve.errors import ArgumentError, ModelError
from mpiserve.serving.served_model import zeros

WIDTH, ROOM = 9, 12


def tensor(name, dtype, *shape):
    return {"name": name, "dtype": dtype, "shape": [-1, *shape]}


TOKENS, LENGTHS = tensor("tokens", "int64", WIDTH), tensor("lengths", "int64")
CONTROLS = [
    tensor("max_new_tokens", "int32"),
    tensor("temperature", "float32"),
    tensor("top_k", "int32"),
    tensor("top_p", "float32"),
    tensor("seed", "int64"),
]
WRITES = [tensor("tokens", "int64", ROOM), LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("language")


@pytest.fixture(scope="module")
def gpt(folder):
    return llama(folder / "llama")


@pytest.fixture(scope="module")
def encoder(folder):
    return bert(folder / "bert")


@pytest.fixture
def make(folder, gpt, encoder):
    def build(task="generate", **table):
        model = {"generate": "llama", "embed": "bert"}.get(task, "llama")
        outputs = WRITES if task == "generate" else [tensor("vector", "float32", 32)]
        inputs = [TOKENS, LENGTHS]
        table = {"task": task, "model": model, "inputs": inputs, "outputs": outputs} | table
        made = backends.create(
            Config.from_dict({"service": {"s": table}}, folder=folder).services[0]
        )
        made.load()
        return made

    return build


def prompts(n):
    random = np.random.default_rng(n)
    lengths = random.integers(1, WIDTH + 1, n)
    tokens = random.integers(1, VOCABULARY, (n, WIDTH))
    tokens[np.arange(WIDTH) >= lengths[:, None]] = 10**6  # what lies behind is nobody's business
    return tokens, lengths


@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_a_batch_generates_what_each_prompt_alone_does(make, gpt, kind):
    tokens, lengths = prompts(8)
    new, counts = make(backend=kind).run((tokens, lengths))
    assert counts.tolist() == [ROOM] * 8
    for i in range(8):
        assert new[i].tolist() == greedy(gpt, tokens[i, : lengths[i]], ROOM)


def test_rows_end_at_stop_tokens_and_at_their_own_limits(make, gpt):
    tokens, lengths = prompts(6)
    free = [greedy(gpt, tokens[i, : lengths[i]], ROOM) for i in range(6)]
    stop = free[0][3]
    limits = np.array([0, 5, 1, 0, 99, 0], np.int32)
    backend = make(
        inputs=[TOKENS, LENGTHS, CONTROLS[0]], options={"stop_tokens": [stop], "pad_token": 7}
    )
    new, counts = backend.run((tokens, lengths, limits))
    for i, line in enumerate(free):
        line = line[: limits[i] or ROOM]
        line = line[: line.index(stop) + 1] if stop in line else line
        assert counts[i] == len(line)
        assert new[i].tolist() == line + [7] * (ROOM - len(line))
    assert counts[0] <= 4


def test_draws_depend_on_the_seed_and_not_on_the_batch(make):
    backend = make(inputs=[TOKENS, LENGTHS, *CONTROLS])
    tokens, lengths = (part.repeat(4, axis=0) for part in prompts(1))
    limits, top_k = np.zeros(4, np.int32), np.zeros(4, np.int32)
    seeds, top_p = np.array([1, 1, 2, 3]), np.zeros(4, np.float32)
    heat = np.full(4, 5, np.float32)
    new, _ = backend.run((tokens, lengths, limits, heat, top_k, top_p, seeds))
    assert (new[0] == new[1]).all()
    assert len({tuple(row) for row in new}) == 3
    alone, _ = backend.run(
        tuple(x[2:3] for x in (tokens, lengths, limits, heat, top_k, top_p, seeds))
    )
    assert (alone[0] == new[2]).all()


def test_top_k_of_one_and_a_tiny_top_p_are_greedy(make, gpt):
    backend = make(inputs=[TOKENS, LENGTHS, *CONTROLS])
    tokens, lengths = prompts(2)
    limits, seeds = np.zeros(2, np.int32), np.zeros(2, np.int64)
    heat, top_k = np.ones(2, np.float32), np.array([1, 0], np.int32)
    top_p = np.array([0, 1e-6], np.float32)
    new, _ = backend.run((tokens, lengths, limits, heat, top_k, top_p, seeds))
    for i in range(2):
        assert new[i].tolist() == greedy(gpt, tokens[i, : lengths[i]], ROOM)


def test_a_prompt_of_no_tokens_gets_none(make):
    service_batch = make()
    new, counts = service_batch.run(zeros(service_batch.service.inputs, 3))
    assert counts.tolist() == [0, 0, 0]
    assert not new.any()


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_equal_those_of_transformers(make, encoder, pooling, normalize):
    tokens, lengths = prompts(5)
    backend = make("embed", options={"pooling": pooling, "normalize": normalize})
    (vectors,) = backend.run((tokens, lengths))
    for i in range(5):
        with torch.inference_mode():
            states = encoder(torch.from_numpy(tokens[i : i + 1, : lengths[i]])).last_hidden_state[0]
        wanted = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling].numpy()
        wanted = wanted / np.linalg.norm(wanted) if normalize else wanted
        np.testing.assert_allclose(vectors[i], wanted, atol=1e-5)


def test_the_engine_is_deepspeeds(make):
    assert make().engine == "deepspeed.inference.engine.InferenceEngine"


MISTAKES = [
    ({"model": "nowhere"}, "nowhere: no such directory; task 'generate' needs a Hugging"),
    ({"model": "."}, "not a Hugging Face directory: it has no config.json"),
    ({"task": None, "options": {}}, "llama is a directory: set task = 'generate'"),
    (
        {"inputs": [TOKENS, tensor("heat", "float32")]},
        "task 'generate' has no input 'heat' (one of",
    ),
    ({"inputs": [LENGTHS]}, "task 'generate' needs an input 'tokens'"),
    ({"outputs": [LENGTHS]}, "task 'generate' has the outputs 'tokens' or 'text'"),
    (
        {"outputs": [tensor("vector", "float32", 3)]},
        "task 'generate' has the outputs 'tokens' or 'text'",
    ),
]


@pytest.mark.parametrize(("table", "text"), MISTAKES)
def test_a_mistake_is_named(make, table, text):
    with pytest.raises(ModelError) as caught:
        make(**table)
    assert text in str(caught.value)


def test_weights_of_another_architecture_are_refused(make, folder):
    (folder / "mixed").mkdir()
    shutil.copy(folder / "bert/config.json", folder / "mixed")
    shutil.copy(folder / "llama/model.safetensors", folder / "mixed")
    with pytest.raises(ModelError, match=r"the files lack \d+ weights of the model, such as emb"):
        make("embed", model="mixed")


def test_options_are_those_of_the_task(make):
    with pytest.raises(ArgumentError, match=r"did you mean 'stop_tokens'\?"):
        make(options={"stop_token": [1]})
    with pytest.raises(ArgumentError, match="must be one of: mean, first, last"):
        make("embed", options={"pooling": "maximum"})


@pytest.mark.parametrize(
    ("tokens", "lengths", "text"),
    [
        ([VOCABULARY], 1, "tokens must be 0 to 95"),
        ([-1], 1, "tokens must"),
        ([1], WIDTH + 1, "lengths"),
    ],
)
def test_wrong_tokens_and_lengths_are_refused(make, tokens, lengths, text):
    batch = np.zeros((1, WIDTH), np.int64), np.array([lengths])
    batch[0][0, : len(tokens)] = tokens
    with pytest.raises(ModelError, match=text):
        make().run(batch)


@pytest.mark.parametrize("option", ["replace_with_kernel_inject", "enable_cuda_graph"])
def test_what_needs_a_gpu_says_so(make, option):
    with pytest.raises(ArgumentError, match=f"{option}: needs a GPU: remove it here"):
        make(options={"init_inference": {option: True}})


def test_a_dtype_reaches_the_weights_and_not_what_the_model_keeps_in_another(make):
    model = make(dtype="bfloat16").module.model
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_without_a_dtype_a_directory_keeps_that_of_its_files(make, gpt, folder):
    copy.deepcopy(gpt).bfloat16().save_pretrained(folder / "bf16")
    for dtype, expected in ((None, torch.bfloat16), ("float32", torch.float32)):
        backend = make("embed", model="bf16", inputs=[TOKENS, LENGTHS], dtype=dtype)
        model = backend.module.model
        assert {tensor.dtype for tensor in model.parameters()} == {expected}
        assert backend.run((np.ones((1, WIDTH), np.int64), np.array([2])))[0].dtype == np.float32
