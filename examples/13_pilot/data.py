"""The data, which are made up: a genome with a signature in it, and sentences of a language."""

import numpy as np

SIGNATURE = (3, 0, 3, 0, 0, 3, 1, 2, 1, 0, 3, 2)  # TATAATCGCATG; A, C, G, T are 0 to 3
BASES, PLANTED = 20_000, 6
WORDS, LENGTH = 12, 16


def genome(part):
    """Make a part of the genome, with signatures of which each has one other base at most.

    Returns:
        The bases, int64 [BASES], and where the signatures begin.
    """
    random = np.random.default_rng(part)
    bases = random.integers(4, size=BASES)
    places = 400 * random.choice(BASES // 400, PLANTED, replace=False)
    for at in places:
        bases[at : at + len(SIGNATURE)] = SIGNATURE
        bases[at + random.integers(len(SIGNATURE))] = random.integers(4)
    return bases, set(places.tolist())


def transitions():
    """The probabilities of the word after each word, float64 [WORDS, WORDS]."""
    return np.random.default_rng(1).dirichlet(np.full(WORDS, 0.3), WORDS)


def sentences(seed, count):
    """Draw sentences of LENGTH words and the word after them: int64 [count, LENGTH + 1]."""
    random, sums = np.random.default_rng(seed), transitions().cumsum(1)
    words = random.integers(WORDS, size=(count, LENGTH + 1))
    for i in range(1, LENGTH + 1):
        after = sums[words[:, i - 1]]
        words[:, i] = (random.random((count, 1)) * after[:, -1:] > after).sum(1)
    return words
