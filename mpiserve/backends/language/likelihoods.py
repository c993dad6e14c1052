"""How likely a model finds its tokens: outputs of the task `generate` for those who want it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LOGPROBS, TOP_TOKENS, TOP_LOGPROBS = "logprobs", "top_tokens", "top_logprobs"
OUTPUTS = (LOGPROBS, TOP_TOKENS, TOP_LOGPROBS)
FLOATS = ("float32", "float64")


class Likelihood(NamedTuple):
    """What the model says of one token, before temperature, top_k, top_p and rules.

    Attributes:
        logprobs: The logarithm of the token's probability.
        top_tokens: The likeliest tokens at this place, as many as the service has room for.
        top_logprobs: The logarithms of their probabilities.
    """

    logprobs: float
    top_tokens: Sequence[int]
    top_logprobs: Sequence[float]


def problems(outputs: Mapping[str, Any], vocabulary: int) -> Iterator[str]:
    """Yield what is wrong with these outputs of a service, whose tensors are given by name."""
    if not any(name in outputs for name in OUTPUTS):
        return
    if LOGPROBS not in outputs or "tokens" not in outputs:
        yield "the outputs 'top_tokens' and 'top_logprobs' need 'logprobs', and that needs 'tokens'"
        return
    if (TOP_TOKENS in outputs) != (TOP_LOGPROBS in outputs):
        yield "the outputs 'top_tokens' and 'top_logprobs' belong together"
        return
    room = outputs["tokens"].shape[1]
    if outputs[LOGPROBS].shape != (-1, room):
        yield f"the output 'logprobs' is of shape [-1, {room}], like 'tokens'"
    for name in (LOGPROBS, TOP_LOGPROBS):
        if name in outputs and outputs[name].dtype not in FLOATS:
            yield f"the output '{name}' is of float32 or float64"
    if TOP_TOKENS in outputs:
        yield from _top_problems(outputs, room, vocabulary)


def _top_problems(outputs: Mapping[str, Any], room: int, vocabulary: int) -> Iterator[str]:
    tokens, logprobs = outputs[TOP_TOKENS], outputs[TOP_LOGPROBS]
    if len(tokens.shape) != 3 or tokens.shape[1] != room or tokens.shape != logprobs.shape:
        yield f"the outputs 'top_tokens' and 'top_logprobs' are of one shape, [-1, {room}, K]"
    elif not 1 <= tokens.shape[2] <= vocabulary:
        yield f"'top_tokens' has room for {tokens.shape[2]} tokens, and the model has {vocabulary}"
    if tokens.dtype not in ("int32", "int64"):
        yield "the output 'top_tokens' is of int32 or int64"


def alternatives(outputs: Mapping[str, Any]) -> int | None:
    """Return how many of the likeliest tokens a service tells; None if it tells no likelihoods."""
    if LOGPROBS not in outputs:
        return None
    return outputs[TOP_TOKENS].shape[2] if TOP_TOKENS in outputs else 0


def arrays(
    rows: Sequence[Sequence[Likelihood]], outputs: Mapping[str, Any], pad: int
) -> dict[str, np.ndarray]:
    """Make these outputs, by name; behind the tokens of a row they are 0, and the pad token."""
    made = {}
    for name in OUTPUTS:
        if name in outputs:
            empty = pad if name == TOP_TOKENS else 0
            shape = (len(rows), *outputs[name].shape[1:])
            made[name] = np.full(shape, empty, outputs[name].dtype)
            for array, row in zip(made[name], rows, strict=True):
                if row:
                    array[: len(row)] = [getattr(one, name) for one in row]
    return made
