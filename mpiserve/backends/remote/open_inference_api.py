"""Requests of a service in the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mpiserve.backends.arrays import dtype_of
from mpiserve.backends.remote.api import Api, Arrays, Ask, Message, Reply
from mpiserve.config import ServiceConfig
from mpiserve.wire import open_inference
from mpiserve.wire.open_inference import DATATYPES, model_path


class OpenInference(Api):
    """The protocol of Triton and others: a message is a request.

    Raises:
        ModelError: If the protocol lacks a dtype.
    """

    def __init__(self, service: ServiceConfig) -> None:
        super().__init__(service)
        if service.task:
            raise self.refuse("a task needs options.api = 'openai'")
        for tensor in (*service.inputs, *service.outputs):
            if tensor.dtype not in DATATYPES:
                text = f"'{tensor.name}' is {tensor.dtype}, which the protocol does not have"
                raise self.refuse(text)
        self._path = model_path(service.model or "")
        self.ready_path = f"{self._path}/ready"
        self._dtypes = {tensor.name: dtype_of(tensor) for tensor in service.outputs}

    def compare(self, url: str, ask: Ask) -> None:
        """Compare dtypes and shapes."""
        found = open_inference.metadata(ask(Message(self._path))[1])
        for described, tensors, what in (
            (found.inputs, self.service.inputs, "inputs"),
            (found.outputs, self.service.outputs, "outputs"),
        ):
            mine = [(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
            if wrong := open_inference.mismatch(described, mine, what):
                raise self.refuse(f"{url}: {wrong}")

    def messages(self, inputs: Arrays) -> list[Message]:
        """Make one message."""
        names = [tensor.name for tensor in self.service.inputs]
        headers, body = open_inference.request(zip(names, inputs, strict=True), self._dtypes)
        return [Message(f"{self._path}/infer", headers, body)]

    def results(self, replies: Sequence[Reply]) -> Mapping[str, np.ndarray]:
        """Read the one reply."""
        (reply,) = replies
        length = reply.headers.get(open_inference.LENGTH)
        return open_inference.response(reply.body, length, self._dtypes)
