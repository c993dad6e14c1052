"""How likely tokens are, as the two answers of the OpenAI API have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

LEAST = -9999.0  # stands for less, which JSON may have no number for


class TokenText(NamedTuple):
    """A token, for people.

    Attributes:
        text: Its text; of a part of a character "bytes:" and the bytes.
        data: The bytes of its text; None where they are not known.
    """

    text: str
    data: bytes | None


class Logprob(NamedTuple):
    """How likely a token is, and which others are.

    Attributes:
        token: The token.
        logarithm: Of its probability.
        likeliest: The likeliest tokens at its place, with the logarithms of their probabilities.
        offset: How many characters of the choice are before it.
    """

    token: TokenText
    logarithm: float
    likeliest: Sequence[tuple[TokenText, float]]
    offset: int


def of_chat(logprobs: Sequence[Logprob]) -> dict[str, Any]:
    """Make the table of a choice of a chat, or of a part of it."""
    entries = [
        _entry(one.token, one.logarithm)
        | {"top_logprobs": [_entry(token, value) for token, value in one.likeliest]}
        for one in logprobs
    ]
    return {"content": entries, "refusal": None}


def _entry(token: TokenText, logarithm: float) -> dict[str, Any]:
    data = None if token.data is None else list(token.data)
    return {"token": token.text, "logprob": max(logarithm, LEAST), "bytes": data}


def of_completion(logprobs: Sequence[Logprob]) -> dict[str, Any]:
    """Make the table of a choice of a completion, or of a part of it.

    The token itself is among the likeliest ones in any case, as the API has it.
    """
    return {
        "tokens": [one.token.text for one in logprobs],
        "token_logprobs": [max(one.logarithm, LEAST) for one in logprobs],
        "top_logprobs": [
            {
                token.text: max(value, LEAST)
                for token, value in (*one.likeliest, (one.token, one.logarithm))
            }
            for one in logprobs
        ],
        "text_offset": [one.offset for one in logprobs],
    }
