"""The OpenAI API, as a server speaks it: requests are read, and answers made.

A field that the server cannot honour is refused by name, unless its value asks for nothing.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpiserve.wire.json_body import WireError
from mpiserve.wire.open_inference_server import dump, load
from mpiserve.wire.openai_logprobs import Logprob, of_chat, of_completion

MOST_STOPS = 4
MOST_CHOICES = 1024  # of all prompts together
MOST_INPUTS = 2048  # of a request for vectors
MOST_TOP_P, MOST_TEMPERATURE = 1.0, 2.0
LEAST_TOP_P = 1e-6  # stands for 0, which leaves the likeliest token
DONE = b"data: [DONE]\n\n"
TEXT = "text"
# Fields that change no answer here.
IGNORED = (
    *("metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier"),
    *("service_tier", "user"),
)
# Fields that are not supported, and the values that ask for nothing, beside null.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": ([TEXT],),
    "presence_penalty": (0,),
    "response_format": ({"type": TEXT},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
MOST_LOGPROBS = {"completions": 5, "chat": 20}
SAMPLING = ("temperature", "top_p", "top_k", "seed")
GENERATES = (
    *("model", "max_tokens", "n", "stop", "stream", "stream_options"),
    *("logprobs", "top_logprobs", *SAMPLING),
)
KNOWN = {
    "completions": (*GENERATES, "prompt"),
    "chat": (*GENERATES, "messages", "max_completion_tokens"),
    "embeddings": ("model", "input", "encoding_format", "dimensions"),
}
OBJECTS = {
    ("completions", False): ("cmpl", "text_completion"),
    ("completions", True): ("cmpl", "text_completion"),
    ("chat", False): ("chatcmpl", "chat.completion"),
    ("chat", True): ("chatcmpl", "chat.completion.chunk"),
}
CODES = {
    401: "invalid_api_key",
    403: "permission_denied",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    503: "overloaded",
}


class FieldError(WireError):
    """A request with a wrong field.

    Args:
        param: The name of the field.
        text: What is wrong with it.
        code: What the API calls that, if it has a name for it.
    """

    def __init__(self, param: str, text: str, code: str | None = None) -> None:
        super().__init__(f"'{param}': {text}")
        self.param, self.code = param, code


class Generation(NamedTuple):
    """A request to continue prompts.

    Attributes:
        model: The name of the model.
        prompts: Texts or tokens; for a chat its messages, as one prompt.
        max_tokens: The most new tokens of a choice; None if the client does not say.
        n: Choices for each prompt.
        stop: Texts that end a choice.
        stream: Whether the answer comes in events.
        include_usage: Whether an event at the end counts the tokens.
        sampling: Of SAMPLING, what the client says.
        logprobs: How many of the likeliest tokens to tell beside each, with the logarithms of
            their probabilities; None to tell nothing.
    """

    model: str
    prompts: Sequence[Any]
    max_tokens: int | None
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    sampling: Mapping[str, float]
    logprobs: int | None = None


class Embeddings(NamedTuple):
    """A request for vectors.

    Attributes:
        model: The name of the model.
        inputs: Texts or tokens.
        in_base64: Whether vectors go as bytes in base64.
        dimensions: How many numbers the client wants; None for all.
    """

    model: str
    inputs: Sequence[Any]
    in_base64: bool
    dimensions: int | None


class Choice(NamedTuple):
    """A choice of an answer, or the new part of one.

    Attributes:
        number: Its place in the answer.
        text: The text.
        finish: Why it has ended: "stop" or "length"; None while it goes on.
        first: Whether it is the first part of a stream.
        logprobs: How likely its tokens are; None if the client does not want to know.
    """

    number: int
    text: str
    finish: str | None
    first: bool = False
    logprobs: list[Logprob] | None = None


# ---- requests


def read_generation(kind: str, body: bytes) -> Generation:
    """Read a request to continue prompts.

    Args:
        kind: "completions" or "chat".
        body: The body.

    Raises:
        WireError: If it is not what the API allows; a FieldError names the field.
    """
    table = _table(kind, body)
    prompts = [_messages(table)] if kind == "chat" else _prompts(table, "prompt", MOST_CHOICES)
    options = _of(table, "stream_options", dict, "an object") or {}
    most = _whole(table, "max_completion_tokens", 1) if kind == "chat" else None
    return Generation(
        model=_model(table),
        prompts=prompts,
        max_tokens=_whole(table, "max_tokens", 1) if most is None else most,
        n=_whole(table, "n", 1, MOST_CHOICES // len(prompts)) or 1,
        stop=_stop(table),
        stream=_flag(table, "stream"),
        include_usage=_flag(options, "include_usage"),
        sampling=_sampling(table),
        logprobs=_logprobs(kind, table),
    )


def read_embeddings(body: bytes) -> Embeddings:
    """Read a request for vectors.

    Raises:
        WireError: If it is not what the API allows.
    """
    table = _table("embeddings", body)
    form = table.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise FieldError("encoding_format", "is neither 'float' nor 'base64'")
    dimensions = _whole(table, "dimensions", 1)
    inputs = _prompts(table, "input", MOST_INPUTS)
    return Embeddings(_model(table), inputs, form == "base64", dimensions)


def _table(kind: str, body: bytes) -> dict[str, Any]:
    table = load(body)
    for name, value in table.items():
        if name in KNOWN[kind] or name in IGNORED or value is None:
            continue
        neutral = NEUTRAL.get(name)
        if neutral is None:
            raise FieldError(name[:80], "is no field of this API", "unknown_parameter")
        if not any(type(value) is type(one) and value == one for one in _alike(neutral)):
            text = f"is not supported, apart from {neutral[0]!r}: remove it"
            raise FieldError(name, text, "unsupported_parameter")
    return table


def _alike(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, and 0 as a float too: clients in Python send either."""
    return (*values, *(float(value) for value in values if type(value) is int))


def _of(table: Mapping[str, Any], name: str, kind: Any, what: str) -> Any:
    value = table.get(name)
    if value is not None and not isinstance(value, kind):
        raise FieldError(name, f"is not {what}")
    return value


def _flag(table: Mapping[str, Any], name: str) -> bool:
    return bool(_of(table, name, bool, "true or false"))


def _model(table: Mapping[str, Any]) -> str:
    model: str | None = _of(table, "model", str, "the name of a model")
    if not model:
        raise FieldError("model", "is missing")
    return model


def _whole(
    table: Mapping[str, Any], name: str, least: int, most: int = (1 << 63) - 1
) -> int | None:
    value = table.get(name)
    if value is not None and (type(value) is not int or not least <= value <= most):
        end = f"to {most}" if most < 1 << 62 else "on"
        raise FieldError(name, f"is not a whole number from {least} {end}")
    return value


def _number(table: Mapping[str, Any], name: str, most: float) -> float | None:
    value = table.get(name)
    if value is None:
        return None
    good = type(value) in (int, float) and math.isfinite(value) and 0 <= value <= most
    if not good:
        raise FieldError(name, f"is not a number from 0 to {most:g}")
    return float(value)


def _sampling(table: Mapping[str, Any]) -> dict[str, float]:
    found = {
        "temperature": _number(table, "temperature", MOST_TEMPERATURE),
        "top_p": _number(table, "top_p", MOST_TOP_P),
        "top_k": _whole(table, "top_k", -1),
        "seed": _whole(table, "seed", -(1 << 63)),
    }
    given = {name: value for name, value in found.items() if value is not None}
    if "top_p" in given:
        given["top_p"] = max(given["top_p"], LEAST_TOP_P)
    if given.get("top_k") == -1:  # vLLM's word for no limit
        given["top_k"] = 0
    return given


def _logprobs(kind: str, table: Mapping[str, Any]) -> int | None:
    """Completions have a number, and chats a word and a number."""
    if kind == "chat":
        wanted = _flag(table, "logprobs")
        number = _whole(table, "top_logprobs", 0, MOST_LOGPROBS[kind])
        if number and not wanted:
            raise FieldError("top_logprobs", "needs 'logprobs': true")
        return number or 0 if wanted else None
    if table.get("top_logprobs"):
        text = "is of chats: completions have a number as 'logprobs'"
        raise FieldError("top_logprobs", text, "unsupported_parameter")
    if table.get("logprobs") is False:
        return None
    return _whole(table, "logprobs", 0, MOST_LOGPROBS[kind])


def _stop(table: Mapping[str, Any]) -> tuple[str, ...]:
    value = table.get("stop")
    texts = [] if value is None else [value] if isinstance(value, str) else value
    good = isinstance(texts, list) and len(texts) <= MOST_STOPS
    if not good or not all(isinstance(text, str) and text for text in texts):
        raise FieldError("stop", f"is not a text, or a list of up to {MOST_STOPS} texts")
    return tuple(texts)


def _prompts(table: Mapping[str, Any], name: str, most: int) -> list[str | list[int]]:
    """Read a text, tokens, or a list of either."""
    value = table.get(name)
    if value is None:
        raise FieldError(name, "is missing")
    prompts = [value] if isinstance(value, str) or _are_tokens(value) else value
    if not isinstance(prompts, list) or not prompts:
        raise FieldError(name, "is neither a text nor tokens, nor a list of them")
    if len(prompts) > most:
        raise FieldError(name, f"has {len(prompts)} entries; {most} are possible")
    for prompt in prompts:
        if not isinstance(prompt, str) and not _are_tokens(prompt):
            raise FieldError(name, "has an entry that is neither a text nor tokens")
        if not prompt:
            raise FieldError(name, "is empty")
    return prompts


def _are_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(token) is int and 0 <= token < 1 << 31 for token in value)
    )


def _messages(table: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = table.get("messages")
    if not isinstance(messages, list) or not messages:
        raise FieldError("messages", "is no list of messages")
    return [_message(message) for message in messages]


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise FieldError("messages", "has an entry without a role")
    if any(message.get(name) for name in ("tool_calls", "function_call", "audio")):
        raise FieldError("messages", "tools and audio are not supported")
    made = {"role": message["role"], "content": _content(message.get("content"))}
    if isinstance(message.get("name"), str):
        made["name"] = message["name"]
    return made


def _content(content: Any) -> str:
    parts = [{"type": TEXT, TEXT: content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts:
        raise FieldError("messages", "has an entry without content")
    for part in parts:
        is_text = isinstance(part, dict) and part.get("type") == TEXT
        if not is_text or not isinstance(part.get(TEXT), str):
            raise FieldError("messages", "content is text alone")
    return "".join(part[TEXT] for part in parts)


# ---- answers


class Answers:
    """Makes the answer to one request, or its events.

    Args:
        kind: "completions" or "chat".
        model: The name of the model.
        number: What is unique of the request.
        created: Seconds since 1970.
        stream: Whether the answer comes in events.
    """

    def __init__(self, kind: str, model: str, number: str, created: int, stream: bool) -> None:
        prefix, name = OBJECTS[kind, stream]
        self._chat = kind == "chat"
        self._stream = stream
        self._same = {
            "id": f"{prefix}-{number}",
            "object": name,
            "created": created,
            "model": model,
        }

    def answer(self, choices: Sequence[Choice], prompt: int, new: int) -> bytes:
        """Make the answer, with the tokens of the prompts and of the choices."""
        entries = [self._choice(choice) for choice in choices]
        return dump(self._same | {"choices": entries, "usage": usage(prompt, new)})

    def event(self, choice: Choice) -> bytes:
        """Make an event of a part of a choice."""
        return event(self._same | {"choices": [self._choice(choice)]})

    def usage_event(self, prompt: int, new: int) -> bytes:
        """Make the event that counts the tokens."""
        return event(self._same | {"choices": [], "usage": usage(prompt, new)})

    def _choice(self, choice: Choice) -> dict[str, Any]:
        logprobs = None if choice.logprobs is None else self._logprobs(choice.logprobs)
        entry = {"index": choice.number, "logprobs": logprobs, "finish_reason": choice.finish}
        if not self._chat:
            return entry | {"text": choice.text}
        message: dict[str, Any] = {"content": choice.text}
        if not self._stream or choice.first:
            message |= {"role": "assistant", "refusal": None}
        return entry | {"delta" if self._stream else "message": message}

    def _logprobs(self, logprobs: Sequence[Logprob]) -> dict[str, Any]:
        return of_chat(logprobs) if self._chat else of_completion(logprobs)


def usage(prompt: int, new: int) -> dict[str, int]:
    """Make the counts of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def event(table: Mapping[str, Any]) -> bytes:
    """Make one event of a stream."""
    return b"data: " + dump(table) + b"\n\n"


def embeddings(model: str, vectors: np.ndarray, in_base64: bool, tokens: int) -> bytes:
    """Make the answer to a request for vectors: one in each row."""
    entries = [
        {"object": "embedding", "index": i, "embedding": _vector(vector, in_base64)}
        for i, vector in enumerate(vectors.astype("<f4"))
    ]
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return dump({"object": "list", "data": entries, "model": model, "usage": counts})


def _vector(vector: np.ndarray, in_base64: bool) -> Any:
    return base64.b64encode(vector.tobytes()).decode() if in_base64 else vector.tolist()


def model_entry(name: str, created: int) -> dict[str, Any]:
    """Describe a model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "mpiserve"}


def error_body(status: int, error: object) -> bytes:
    """Make the body of an error.

    Args:
        status: The status of the answer.
        error: The text, or an exception with it, such as a FieldError.
    """
    return dump(error_table(status, error))


def error_table(status: int, error: object) -> dict[str, Any]:
    """Make the table of an error, for a body or an event."""
    code = getattr(error, "code", None) if isinstance(error, FieldError) else CODES.get(status)
    if status == 404 and isinstance(error, Exception):  # a text is that of an unknown path
        code = "model_not_found"
    kind = "invalid_request_error" if status < 500 else "server_error"
    param = getattr(error, "param", None)
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}
