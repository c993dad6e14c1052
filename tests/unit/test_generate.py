"""Generation in steps: sequences that come and go, and streams, beside transformers itself."""

import numpy as np
import pytest
import torch
from generation import (
    BASE,
    ENDS,
    OPENS,
    READS,
    ROOM,
    STREAM,
    WIDTH,
    ask,
    prompt,
    tensor,
    until,
    words,
)
from language_models import VOCABULARY, greedy, llama

from mpiserve import backends
from mpiserve.config import Config
from mpiserve.errors import ArgumentError, ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generate")


@pytest.fixture(scope="module")
def gpt(folder):
    return llama(folder / "llama")


@pytest.fixture
def make(folder, gpt):
    def build(*more, rows=4, outputs=("tokens", "lengths"), replicas=1, **options):
        shapes = {"tokens": tensor("tokens", ROOM), "lengths": tensor("lengths")}
        table = {"task": "generate", "model": "llama", "backend": "torch", "max_batch_rows": rows}
        table["replicas"] = replicas
        table |= {"inputs": [*BASE, *more], "outputs": [shapes[name] for name in outputs]}
        config = Config.from_dict({"service": {"s": table | {"options": options}}}, folder=folder)
        backend = backends.create(config.services[0])
        backend.load()
        return backend.steps

    return build


def test_sequences_that_join_and_leave_are_what_each_is_alone(make, gpt):
    steps, said = make(), {}
    limits = [ROOM, 2, 5, 1, ROOM, 3, 7, ROOM, 4, ROOM]
    for key, limit in enumerate(limits):
        ask(steps, key, key, limit)
        for _ in range(key % 3):
            said |= steps.step()
    said |= until(steps, *(set(range(10)) - said.keys()))
    for key, limit in enumerate(limits):
        assert words(said[key]) == greedy(gpt, prompt(key)[2], limit)
    assert not steps.busy


def test_a_short_one_ends_before_a_long_one_that_was_there_first(make):
    steps = make()
    ask(steps, 1, 1)
    steps.step()
    ask(steps, 2, 2, limit=2)
    assert until(steps, 2).keys() == {2}
    assert until(steps, 1).keys() == {1}


def test_so_many_run_as_a_batch_has_rows_and_the_others_wait(make, gpt):
    steps = make(rows=2)
    assert steps.room
    for key in range(5):
        ask(steps, key, key, limit=3)
    assert not steps.room
    assert steps.step() == {}
    assert len(steps._decoder.sequences) == 2
    said = until(steps, *range(5))
    assert all(words(said[key]) == greedy(gpt, prompt(key)[2], 3) for key in range(5))


def test_what_is_dropped_leaves_at_once(make, gpt):
    steps = make()
    for key in range(3):
        ask(steps, key, key)
    steps.step()
    steps.drop(1)
    steps.step()
    assert len(steps._decoder.sequences) == 2
    said = until(steps, 0, 2)
    assert said.keys() == {0, 2}
    assert words(said[2]) == greedy(gpt, prompt(2)[2], ROOM)


def test_a_request_of_several_rows_is_answered_when_its_last_row_ends(make, gpt):
    steps = make(rows=2)  # so its rows do not even run together
    parts = [prompt(seed) for seed in range(3)]
    tokens, lengths = (np.concatenate([part[i] for part in parts]) for i in range(2))
    steps.begin(7, 0, (tokens, lengths, np.array([2, ROOM, 3])))
    result = until(steps, 7)[7]
    assert result["lengths"].tolist() == [2, ROOM, 3]
    for row, limit in enumerate([2, ROOM, 3]):
        new = result["tokens"][row, :limit].tolist()
        assert new == greedy(gpt, parts[row][2], limit)


POISON = 77  # a token that the engine cannot read


class Engine:
    """A model that raises on batches with a certain token, when asked to."""

    def __init__(self, model, steps_too=False):
        self.model, self.steps_too = model, steps_too

    def __call__(self, **inputs):
        one_token = inputs["input_ids"].shape[1] == 1
        if self.poisoned(inputs["input_ids"]) and (self.steps_too or not one_token):
            raise ValueError("a token that nobody can read")
        return self.model(**inputs)

    def poisoned(self, ids):
        return bool((ids == POISON).any())


def clean(seed):
    tokens, length, _ = prompt(seed)
    tokens[tokens == POISON] = 1
    return tokens, length


def test_a_prompt_that_cannot_be_read_costs_itself_alone(make, gpt):
    steps = make()
    steps._decoder._engine = Engine(gpt)
    given = [clean(seed) for seed in range(4)]
    given[2][0][0, 0] = POISON
    steps.begin(0, 0, (*given[0], np.array([0])))
    steps.step()
    for key in (1, 2, 3):
        steps.begin(key, 0, (*given[key], np.array([0])))
    said = until(steps, 0, 1, 2, 3)
    assert "nobody can read" in str(said.pop(2))
    for key, result in said.items():
        tokens, length = given[key]
        assert words(result) == greedy(gpt, tokens[0, : length[0]], ROOM)


def test_a_step_that_fails_costs_the_sequence_that_makes_it_fail(make, gpt):
    free = {}
    for seed in range(20):
        tokens, length = clean(seed)
        free[seed] = greedy(gpt, tokens[0, : length[0]], ROOM)
    guilty = next(seed for seed in free if POISON in free[seed][1:-1])
    others = [seed for seed in free if POISON not in free[seed]][:3]
    steps = make()
    steps._decoder._engine = Engine(gpt, steps_too=True)
    for seed in (guilty, *others):
        steps.begin(seed, 0, (*clean(seed), np.array([0])))
    said = until(steps, guilty, *others)
    assert "nobody can read" in str(said[guilty])
    assert [words(said[seed]) for seed in others] == [free[seed] for seed in others]


def test_caches_that_cannot_be_joined_cost_those_that_came(make, gpt, monkeypatch):
    steps = make()
    ask(steps, 1, 1)
    steps.step()
    running, concatenate = steps._decoder, steps._decoder._concatenate

    def torn(mask, cache):
        monkeypatch.undo()
        concatenate(mask, cache)
        raise MemoryError("no room")

    monkeypatch.setattr(running, "_concatenate", torn)
    ask(steps, 2, 2)
    said = until(steps, 1, 2)
    assert isinstance(said[2], MemoryError)
    assert words(said[1]) == greedy(gpt, prompt(1)[2], ROOM)


def test_logits_that_are_no_numbers_are_an_error(make, gpt):
    steps = make()

    class Nan(Engine):
        def __call__(self, **inputs):
            output = self.model(**inputs)
            output.logits[(inputs["input_ids"] == POISON).any(1)] = float("nan")
            return output

    steps._decoder._engine = Nan(gpt)
    given = [clean(seed) for seed in range(2)]
    given[0][0][0, 0] = POISON
    for key in range(2):
        steps.begin(key, 0, (*given[key], np.array([4])))
    said = until(steps, 0, 1)
    assert "logits are not numbers" in str(said[0])
    assert words(said[1]) == greedy(gpt, given[1][0][0, : given[1][1][0]], 4)


def test_a_step_of_the_whole_that_fails_leaves_nothing_behind(make, gpt, monkeypatch):
    steps = make(STREAM)
    ask(steps, 1, 1, stream=[5, OPENS])
    until(steps, 1)
    ask(steps, 2, 2, stream=[0, OPENS])
    monkeypatch.setattr(steps._decoder, "step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        until(steps, 2)
    monkeypatch.undo()
    assert not steps.busy
    ask(steps, 3, 3, stream=[0, OPENS])
    assert words(until(steps, 3)[3]) == greedy(gpt, prompt(3)[2], ROOM)


def test_a_stream_gives_each_token_once_and_then_none(make, gpt):
    steps, got = make(STREAM), []
    ask(steps, 0, 1, stream=[9, OPENS])
    for key in range(100):
        new = words(until(steps, key)[key])
        got += new
        if not new:
            break
        for _ in range(3 if key == 3 else 0):
            steps.step()
        ask(steps, key + 1, 0, stream=[9, READS])
    assert got == greedy(gpt, prompt(1)[2], ROOM)
    assert key < ROOM  # what came meanwhile was given together
    assert not steps._streams.open


def test_a_stream_is_its_clients_own(make):
    steps = make(STREAM)
    tokens, lengths, _ = prompt(1)
    for client in (3, 4):
        steps.begin(client, client, (tokens, lengths, np.array([0]), np.array([[1, OPENS]])))
    assert until(steps, 3, 4).keys() == {3, 4}
    with pytest.raises(
        ModelError, match="rank 5 has no stream 1: it ended, was not read for .*, or the model was"
    ):
        steps.begin(9, 5, (tokens, lengths, np.array([0]), np.array([[1, READS]])))


def test_a_stream_that_is_ended_or_whose_reader_is_gone_is_dropped(make):
    steps = make(STREAM)
    ask(steps, 1, 1, stream=[1, OPENS])
    ask(steps, 2, 2, stream=[2, OPENS])
    until(steps, 1, 2)
    ask(steps, 3, 1, stream=[1, ENDS])
    assert words(until(steps, 3)[3]) == []
    ask(steps, 4, 2, stream=[2, READS])
    steps.drop(4)
    steps.step()
    assert not steps._decoder.sequences
    for number in (1, 2):
        with pytest.raises(ModelError, match=f"no stream {number}"):
            ask(steps, 5, 1, stream=[number, READS])


def exchange(steps, key, *rows):
    """Begin a request of several streams: what each does, and the prompt of those that open."""
    parts = [prompt(seed) for _, _, seed in rows]
    tokens, lengths = (np.concatenate([part[i] for part in parts]) for i in range(2))
    stream = np.array([row[:2] for row in rows])
    steps.begin(key, 0, (tokens, lengths, np.zeros(len(rows), np.int64), stream))


def test_one_request_reads_the_new_tokens_of_many_streams(make, gpt):
    steps, got, requests = make(STREAM, rows=3), {n: [] for n in range(1, 5)}, 1
    exchange(steps, 0, *((n, OPENS, n) for n in got))
    said, left = until(steps, 0)[0], [*got]
    while True:
        for n, tokens, length in zip(left, said["tokens"], said["lengths"], strict=True):
            assert length >= -1
            got[n] += tokens[: max(0, length)].tolist()
        left = [n for n, length in zip(left, said["lengths"], strict=True) if length]
        if not left:
            break
        exchange(steps, requests, *((n, READS, 0) for n in left))
        said, requests = until(steps, requests)[requests], requests + 1
    assert all(got[n] == greedy(gpt, prompt(n)[2], ROOM) for n in got)
    assert requests <= 2 * (ROOM + 1) + 2  # the fourth stream waits for the others
    assert not steps._streams.open


def test_streams_of_one_request_end_and_fail_each_by_itself(make):
    steps = make(STREAM)
    exchange(steps, 0, *((n, OPENS, n) for n in (1, 2, 3)))
    assert until(steps, 0)[0]["lengths"].tolist() == [1, 1, 1]
    steps._streams.open[0, 2].sequence.fail(ValueError("no"))
    exchange(steps, 1, (1, READS, 0), (2, READS, 0), (3, ENDS, 0), (9, READS, 0))
    assert until(steps, 1)[1]["lengths"].tolist() in ([-1, -2, 0, -2], [1, -2, 0, -2])
    ask(steps, 2, 0, stream=[2, READS])
    assert isinstance(until(steps, 2)[2], ValueError)
    assert steps._streams.open.keys() == {(0, 1)}
    exchange(steps, 3, (1, READS, 0), (4, OPENS, 4))
    steps.drop(3)
    steps.step()
    assert not steps._streams.open and not steps._decoder.sequences


def test_who_reads_a_stream_that_another_request_ends_is_told(make):
    steps = make(STREAM)
    exchange(steps, 0, (1, OPENS, 1), (2, OPENS, 2))
    until(steps, 0)
    ask(steps, 1, 0, stream=[1, READS])
    ask(steps, 2, 0, stream=[1, ENDS])
    said = until(steps, 1, 2)
    assert words(said[1]) == words(said[2]) == []


def test_a_stream_that_is_not_read_is_dropped_after_a_while(make):
    steps = make(STREAM, stream_timeout_s=0.01)
    ask(steps, 1, 1, stream=[1, OPENS])
    until(steps, 1)
    for stream in list(steps._streams.open.values()):
        stream.since -= 1.0
    steps.step()
    assert not steps._streams.open


def test_mistakes_with_streams_are_named(make):
    steps = make(STREAM)
    ask(steps, 1, 1, stream=[1, OPENS])
    with pytest.raises(ModelError, match="stream 1 of rank 0 is open already"):
        ask(steps, 2, 1, stream=[1, OPENS])
    with pytest.raises(ModelError, match="is being read"):
        ask(steps, 2, 1, stream=[1, READS])
    with pytest.raises(ModelError, match="must be 0 .open., 1 .read. or 2 .end., got"):
        ask(steps, 2, 1, stream=[1, 3])
    two = [np.repeat(array, 2, axis=0) for array in (*prompt(1)[:2], np.array([0]))]
    for wrong in ([[2, OPENS], [2, OPENS]], [[2, OPENS], [0, OPENS]]):
        with pytest.raises(ModelError, match="has a stream of its own"):
            steps.begin(3, 0, (*two, np.array(wrong)))
    with pytest.raises(ModelError, match="stream 1 of rank 0 is open already"):
        steps.begin(3, 0, (*two, np.array([[2, OPENS], [1, OPENS]])))
    with pytest.raises(ModelError, match="no stream 2"):  # so a request opens all, or none
        ask(steps, 2, 1, stream=[2, READS])
    with pytest.raises(ModelError, match="outputs are 'tokens' and 'lengths'"):
        make(STREAM, outputs=("tokens",))
    with pytest.raises(ModelError, match="needs replicas = 1"):
        make(STREAM, replicas=2)
    with pytest.raises(ModelError, match=r"is of shape \[-1, 2\]"):
        make(tensor("stream"))
    with pytest.raises(ArgumentError, match="stream_timeout_s: must be a positive number"):
        make(STREAM, stream_timeout_s=0)


def test_fewer_new_tokens_than_none_are_refused(make):
    with pytest.raises(ModelError, match="max_new_tokens is -1; it must be at least 0"):
        ask(make(), 1, 1, limit=-1)


def test_a_stream_that_fails_says_so_when_it_is_read(make, gpt):
    steps = make(STREAM)
    tokens, length = clean(1)
    steps.begin(1, 0, (tokens, length, np.array([0]), np.array([[4, OPENS]])))
    until(steps, 1)
    steps._decoder._engine = lambda **inputs: 1 / 0
    steps.step()
    ask(steps, 2, 1, stream=[4, READS])
    assert isinstance(until(steps, 2)[2], ZeroDivisionError)
    assert not steps._streams.open


def test_prompts_of_no_tokens_end_at_once(make):
    steps = make()
    with torch.inference_mode():
        steps.begin(1, 0, (np.zeros((1, WIDTH), np.int64), np.array([0]), np.array([0])))
        assert words(steps.step()[1]) == []


def from_text(text, *others):
    """A tokenizer of bytes: tokens of a text, which ends at its first zero."""
    lengths = (text != 0).sum(axis=1)
    return text[:, :WIDTH].astype(np.int64) % VOCABULARY, lengths, *others


def to_text(tokens, lengths):
    return (np.where(np.arange(ROOM) < lengths[:, None], tokens + 32, 0)).astype(np.uint8)


def test_texts_go_in_and_out_by_functions_of_the_users(folder, gpt):
    text = {"name": "text", "dtype": "uint8"}
    table = {
        "task": "generate",
        "model": "llama",
        "backend": "torch",
        "inputs": [text | {"shape": [-1, WIDTH]}, tensor("max_new_tokens")],
        "outputs": [text | {"shape": [-1, ROOM]}],
        "model_inputs": BASE,
        "model_outputs": [tensor("tokens", ROOM), tensor("lengths")],
        "preprocess": f"{__name__}:from_text",
        "postprocess": f"{__name__}:to_text",
    }
    config = Config.from_dict({"service": {"s": table}}, folder=folder)
    backend = backends.create(config.services[0])
    backend.load()
    for key, text in enumerate((b"simulate", b"infer")):
        given = np.frombuffer(text.ljust(WIDTH, b"\0"), np.uint8)[None]
        backend.steps.begin(key, 0, (given, np.array([3 + key])))
    said = until(backend.steps, 0, 1)
    for key, text in enumerate((b"simulate", b"infer")):
        new = greedy(gpt, np.frombuffer(text, np.uint8).astype(np.int64) % VOCABULARY, 3 + key)
        assert bytes(said[key][0]).rstrip(b"\0") == bytes(token + 32 for token in new)
