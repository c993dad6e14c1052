"""What tests of generation in steps share: the signature, prompts, questions and answers."""

import numpy as np
from language_models import VOCABULARY

WIDTH, ROOM = 9, 12
OPENS, READS, ENDS = range(3)


def tensor(name, *shape):
    return {"name": name, "dtype": "int64", "shape": [-1, *shape]}


BASE = [tensor("tokens", WIDTH), tensor("lengths"), tensor("max_new_tokens")]
STREAM = tensor("stream", 2)


def prompt(seed):
    random = np.random.default_rng(seed)
    tokens, length = random.integers(1, VOCABULARY, (1, WIDTH)), random.integers(1, WIDTH + 1, 1)
    return tokens, length, tokens[0, : length[0]]


def ask(steps, key, seed, limit=0, stream=None):
    tokens, lengths, _ = prompt(seed)
    more = [] if stream is None else [np.array([stream])]
    steps.begin(key, 0, (tokens, lengths, np.array([limit]), *more))


def until(steps, *keys):
    """Step until these are answered."""
    said = {}
    for _ in range(100):
        said |= steps.step()
        if said.keys() >= set(keys):
            return said
    raise AssertionError(f"{keys} were not answered, but {said.keys()}")


def words(result):
    return result["tokens"][0, : result["lengths"][0]].tolist()
