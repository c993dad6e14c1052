"""The OpenAI API over HTTP: its words, and what a client sends and reads, without streams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mpiserve.wire.json_body import WireError, read_table

MODELS = "/v1/models"
HEALTH = "/health"  # not of the API, but vLLM and transformers serve have it
EMBEDDINGS = "/v1/embeddings"
COMPLETIONS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


class Completion(NamedTuple):
    """The answer to one prompt.

    Attributes:
        text: What the model has written.
        tokens: How many tokens that are; None if the server does not count them.
    """

    text: str
    tokens: int | None


def models(body: bytes) -> tuple[str, ...]:
    """Read the names of a server's models.

    Raises:
        WireError: If it is not what the API allows.
    """
    try:
        return tuple(str(entry["id"]) for entry in read_table(body)["data"])
    except (KeyError, TypeError):
        raise WireError("no list of models") from None


def completion_request(
    kind: str, model: str, prompt: str, system: str, settings: Mapping[str, Any]
) -> bytes:
    """Make a request to continue a prompt.

    Args:
        kind: A key of COMPLETIONS.
        model: The name of the model.
        prompt: The text, or what the user says in a chat.
        system: What a chat begins with; "" for nothing.
        settings: More fields, such as max_tokens.
    """
    table: dict[str, Any] = {"model": model, **settings}
    if kind == "chat":
        first = [{"role": "system", "content": system}] if system else []
        table["messages"] = [*first, {"role": "user", "content": prompt}]
    else:
        table["prompt"] = prompt
    return json.dumps(table).encode()


def completion(kind: str, body: bytes) -> Completion:
    """Read the answer to such a request.

    Raises:
        WireError: If it is not what the API allows.
    """
    table = read_table(body)
    try:
        choice = table["choices"][0]
        text = choice["message"]["content"] if kind == "chat" else choice["text"]
    except (KeyError, IndexError, TypeError):
        raise WireError("an answer without a choice") from None
    if not isinstance(text, str | None):
        raise WireError("a choice whose text is no text")
    usage = table.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    return Completion(text or "", tokens if isinstance(tokens, int) else None)


def embeddings_request(model: str, texts: Sequence[str], settings: Mapping[str, Any]) -> bytes:
    """Make a request for the vectors of texts."""
    return json.dumps({"model": model, "input": [*texts], **settings}).encode()


def embeddings(body: bytes) -> list[list[float]]:
    """Read the vectors of texts, in their order.

    Raises:
        WireError: If it is not what the API allows.
    """
    try:
        entries = read_table(body)["data"]
        vectors = {int(entry["index"]): entry["embedding"] for entry in entries}
        found = [[float(value) for value in vectors[i]] for i in range(len(entries))]
    except (KeyError, TypeError, ValueError):
        raise WireError("no list of embeddings") from None
    if len({len(vector) for vector in found}) > 1:
        raise WireError("embeddings of different lengths")
    return found
