"""Requests of a language service in the OpenAI API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpiserve.backends.arrays import dtype_of
from mpiserve.backends.remote.api import Api, Arrays, Ask, Message, Reply
from mpiserve.backends.remote.settings import Settings
from mpiserve.config import ServiceConfig
from mpiserve.text import decode_text, fit_text
from mpiserve.wire import openai
from mpiserve.wire.json_body import WireError, error_text

HEADERS = {"Content-Type": "application/json"}
# Inputs of the task `generate`, and the fields that they become. 0 leaves a field to the server.
FIELDS = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "seed": "seed",
}
ALWAYS = ("temperature", "seed")  # where 0 is a value: the likeliest token, and a seed
NAMES = {
    "generate": (("text", *FIELDS), ("text", "lengths")),
    "embed": (("text",), ()),  # any output
}


class OpenAI(Api):
    """The API of vLLM, `transformers serve` and others: a message is a row, or all for `embed`.

    Args:
        service: The table of the service.
        settings: The options.

    Raises:
        ModelError: If the signature has what the API has not.
    """

    ready_path = openai.HEALTH
    ready = (200, 404)  # some have no such path, and are ready when they answer

    def __init__(self, service: ServiceConfig, settings: Settings) -> None:
        super().__init__(service)
        self._settings = settings
        self._model = service.model or ""
        self._check()

    def _check(self) -> None:
        service = self.service
        if not service.task:
            raise self.refuse("options.api = 'openai' needs a task: 'generate' or 'embed'")
        inputs, outputs = NAMES[service.task]
        self._check_names("input", service.inputs, inputs)
        if service.task == "generate":
            self._check_names("output", service.outputs, outputs)
        elif len(service.outputs) != 1:
            raise self.refuse("the task 'embed' has one output")

    def _check_names(self, what: str, tensors: Sequence[Any], known: tuple[str, ...]) -> None:
        names = [tensor.name for tensor in tensors]
        if unknown := [name for name in names if name not in known]:
            text = f"the OpenAI API has no {what} '{unknown[0]}', but {', '.join(known)}"
            raise self.refuse(text)
        if "text" not in names:
            raise self.refuse(f"the OpenAI API needs an {what} 'text'")

    def compare(self, url: str, ask: Ask) -> None:
        """Look whether the server has the model; one that does not list it is asked for a token."""
        status, body = ask(Message(openai.MODELS))
        found = openai.models(body) if status == 200 else ()
        if self._model in found:
            return
        status, body = ask(self._trial())
        if status != 200:
            why = f"status {status}: {error_text(body)}; its models are {', '.join(found) or '?'}"
            raise self.refuse(f"{url} does not answer for the model '{self._model}': {why}")

    def _trial(self) -> Message:
        if self.service.task == "embed":
            return self._embeddings(["1"])
        return self._completion("1", {"max_tokens": 1})

    def messages(self, inputs: Arrays) -> list[Message]:
        """Make a message for each row, or one for all rows of `embed`."""
        named = dict(zip((tensor.name for tensor in self.service.inputs), inputs, strict=True))
        texts = decode_text(named.pop("text"))
        if self.service.task == "embed":
            return [self._embeddings(texts)]
        return [self._row(text, named, row) for row, text in enumerate(texts)]

    def _embeddings(self, texts: Sequence[str]) -> Message:
        body = openai.embeddings_request(self._model, texts, self._settings.extra)
        return Message(openai.EMBEDDINGS, HEADERS, body)

    def _row(self, text: str, named: Mapping[str, np.ndarray], row: int) -> Message:
        fields: dict[str, Any] = {"temperature": 0}
        for name, values in named.items():
            if (value := values[row].item()) or name in ALWAYS:
                fields[FIELDS[name]] = value
        return self._completion(text, fields)

    def _completion(self, text: str, fields: Mapping[str, Any]) -> Message:
        kind, settings = self._settings.endpoint, self._settings
        more = {**settings.extra, **fields}
        body = openai.completion_request(kind, self._model, text, settings.system, more)
        return Message(openai.COMPLETIONS[kind], HEADERS, body)

    def results(self, replies: Sequence[Reply]) -> Mapping[str, np.ndarray]:
        """Make texts and lengths of the replies, or vectors of the one of `embed`."""
        if self.service.task == "embed":
            return self._vectors(replies[0].body)
        found = [openai.completion(self._settings.endpoint, reply.body) for reply in replies]
        return {tensor.name: self._output(tensor, found) for tensor in self.service.outputs}

    def _output(self, tensor: Any, found: Sequence[openai.Completion]) -> np.ndarray:
        if tensor.name == "text":
            return fit_text((completion.text for completion in found), tensor.shape[1])
        tokens = [completion.tokens for completion in found]
        if None in tokens:
            raise WireError("an answer without usage.completion_tokens; remove 'lengths'")
        return np.array(tokens, dtype_of(tensor))

    def _vectors(self, body: bytes) -> Mapping[str, np.ndarray]:
        (tensor,) = self.service.outputs
        return {tensor.name: np.array(openai.embeddings(body), dtype_of(tensor))}
