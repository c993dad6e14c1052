"""How likely a model finds its tokens: outputs of the task generate."""

import numpy as np
import pytest
from generation import BASE, OPENS, READS, ROOM, STREAM, ask, prompt, tensor, until, words
from language_models import VOCABULARY, greedy, llama, logprobs

from mpiserve import backends
from mpiserve.backends.language.decoding import TokenSequence
from mpiserve.backends.language.generation_settings import Rules
from mpiserve.backends.language.likelihoods import Likelihood
from mpiserve.backends.language.streams import Streams
from mpiserve.config import Config
from mpiserve.errors import ModelError

DRAWS = [
    {"name": "temperature", "dtype": "float32", "shape": [-1]},
    {"name": "top_k", "dtype": "int64", "shape": [-1]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("likelihoods")


@pytest.fixture(scope="module")
def gpt(folder):
    return llama(folder / "llama")


def floats(name, *shape, dtype="float32"):
    return {"name": name, "dtype": dtype, "shape": [-1, *shape]}


def told(likeliest, dtype="float32"):
    outputs = [tensor("tokens", ROOM), tensor("lengths"), floats("logprobs", ROOM, dtype=dtype)]
    if likeliest:
        outputs.append(tensor("top_tokens", ROOM, likeliest))
        outputs.append(floats("top_logprobs", ROOM, likeliest, dtype=dtype))
    return outputs


@pytest.fixture
def make(folder, gpt):
    def build(outputs, *more, **options):
        table = {"task": "generate", "model": "llama", "backend": "torch", "max_batch_rows": 4}
        table |= {"inputs": [*BASE, *more], "outputs": outputs, "options": options}
        config = Config.from_dict({"service": {"s": table}}, folder=folder)
        backend = backends.create(config.services[0])
        backend.load()
        return backend.steps

    return build


def is_right(gpt, seed, result, likeliest):
    """Compare with the logits of the whole sequence, and what is behind its tokens with 0."""
    tokens, count = words(result), int(result["lengths"][0])
    wanted = logprobs(gpt, prompt(seed)[2].tolist(), tokens)
    own = result["logprobs"][0]
    assert np.allclose(own[:count], wanted[np.arange(count), tokens], atol=1e-4)
    assert (own[count:] == 0).all()
    if likeliest:
        best = np.sort(wanted, axis=1)[:, ::-1][:, :likeliest]
        assert np.allclose(result["top_logprobs"][0, :count], best, atol=1e-4)
        chosen = np.take_along_axis(wanted, result["top_tokens"][0, :count], 1)
        assert np.allclose(chosen, best, atol=1e-4)
        assert (result["top_logprobs"][0, count:] == 0).all()


@pytest.mark.parametrize("likeliest, dtype", [(0, "float64"), (3, "float32")])
def test_they_are_those_of_the_whole_sequence(make, gpt, likeliest, dtype):
    steps, said = make(told(likeliest, dtype)), {}
    limits = [ROOM, 2, 5, ROOM]
    for key, limit in enumerate(limits):
        ask(steps, key, key, limit)
        said |= steps.step()
    said |= until(steps, *(set(range(4)) - said.keys()))
    for key, limit in enumerate(limits):
        assert words(said[key]) == greedy(gpt, prompt(key)[2], limit)
        assert said[key]["logprobs"].dtype == dtype
        is_right(gpt, key, said[key], likeliest)


def test_temperature_and_rules_do_not_change_them(make, gpt):
    steps = make(told(2), *DRAWS, generation={"repetition_penalty": 1.5})
    tokens, lengths, _ = prompt(3)
    limits, hot, k = np.array([6]), np.array([1.8], np.float32), np.array([5])
    steps.begin(0, 0, (tokens, lengths, limits, hot, k))
    is_right(gpt, 3, until(steps, 0)[0], 2)


def test_they_stay_at_their_tokens_when_a_rule_fails_once(make, gpt, monkeypatch):
    calls, end = [], Rules.end

    def failing(rules, context):
        calls.append(context)
        if len(calls) == 2:
            raise RuntimeError("once")
        return end(rules, context)

    monkeypatch.setattr(Rules, "end", failing)
    steps = make(told(2), generation={"repetition_penalty": 1.5})
    ask(steps, 0, 3, limit=6)
    is_right(gpt, 3, until(steps, 0)[0], 2)
    assert len(calls) > 2


def test_a_stream_has_those_of_its_new_tokens(make, gpt):
    steps, parts = make(told(2), STREAM), []
    ask(steps, 0, 5, limit=4, stream=(1, OPENS))
    for key in range(1, 9):
        result = until(steps, key - 1)[key - 1]
        count = int(result["lengths"][0])
        if not count:
            break
        parts.append({n: array[:, :count] for n, array in result.items() if n != "lengths"})
        ask(steps, key, 5, stream=(1, READS))
    whole = {"lengths": np.array([sum(part["tokens"].shape[1] for part in parts)])}
    for name in ("tokens", "logprobs", "top_tokens", "top_logprobs"):
        whole[name] = np.concatenate([part[name] for part in parts], 1)
    assert words(whole) == greedy(gpt, prompt(5)[2], 4)
    is_right(gpt, 5, whole, 2)


def test_a_version_that_takes_over_a_stream_has_them_too():
    old = Streams(60.0)
    left = TokenSequence([1], 2, tokens=[7, 8], ended=True)
    left.likelihoods = [Likelihood(-1.0, [7], [-1.0]), Likelihood(-2.0, [9], [-0.5])]
    old.begin(1, 0, [(1, OPENS)], lambda rows: [left])
    old.answers()
    old.open[0, 1].read = 1
    new = Streams(60.0)
    new.take_over(type("Pickled", (), old.__getstate__()))
    new.begin(2, 0, [(1, READS)], lambda rows: [])
    ((row,),) = new.answers().values()
    assert row.tokens == [8] and list(row.likelihoods) == left.likelihoods[1:]


@pytest.mark.parametrize(
    "outputs, word",
    [
        ([tensor("tokens", ROOM), tensor("top_tokens", ROOM, 2)], "need 'logprobs'"),
        ([*told(0), tensor("top_tokens", ROOM, 2)], "belong together"),
        ([*told(0)[:2], floats("logprobs", ROOM + 1)], "like 'tokens'"),
        ([*told(0)[:2], tensor("logprobs", ROOM)], "float32 or float64"),
        ([*told(0), tensor("top_tokens", ROOM, 2), floats("top_logprobs", ROOM, 3)], "one shape"),
        (told(VOCABULARY + 1), f"the model has {VOCABULARY}"),
        ([*told(0), floats("top_tokens", ROOM, 2), floats("top_logprobs", ROOM, 2)], "int32"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(make, outputs, word):
    with pytest.raises(ModelError, match=word):
        make(outputs, self_check=False)
