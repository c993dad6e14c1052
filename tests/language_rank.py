"""The child of a gateway without a job: its rank is a thread that runs real language models."""

from __future__ import annotations

import select
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import language_models
import numpy as np
from gateway_rank import Rank

from mpiserve import backends
from mpiserve.backends.base import Steps
from mpiserve.config import Config, ServiceConfig
from mpiserve.errors import Code
from mpiserve.gateway.link import ANSWER, INFER, READY, split
from mpiserve.gateway.tables import language_of
from mpiserve.wire.open_inference import numpy_dtype

PROMPT, ROOM, ROWS = 48, 24, 8
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:"
EXTRA = ("temperature", "top_k", "top_p", "seed")


def tensor(name: str, dtype: str = "int64", *shape: int) -> dict[str, Any]:
    """Describe a tensor of a signature."""
    return {"name": name, "dtype": dtype, "shape": [-1, *shape]}


def table(
    streams: bool = True, draws: bool = True, likeliest: int | None = None, **more: Any
) -> dict[str, Any]:
    """Describe a service that generates, and if wanted tells how likely so many tokens are."""
    inputs = [tensor("tokens", "int64", PROMPT), tensor("lengths"), tensor("max_new_tokens")]
    if draws:
        dtypes = ("float32", "int64", "float32", "int64")
        inputs += [tensor(name, dtype) for name, dtype in zip(EXTRA, dtypes, strict=True)]
    if streams:
        inputs.append(tensor("stream", "int64", 2))
    outputs = [tensor("tokens", "int64", ROOM), tensor("lengths")]
    if likeliest is not None:
        outputs.append(tensor("logprobs", "float32", ROOM))
    if likeliest:
        outputs.append(tensor("top_tokens", "int32", ROOM, likeliest))
        outputs.append(tensor("top_logprobs", "float32", ROOM, likeliest))
    same = {"backend": "torch", "model": "llama", "task": "generate", "max_batch_rows": ROWS}
    return same | {"inputs": inputs, "outputs": outputs} | more


def embedder(**more: Any) -> dict[str, Any]:
    """Describe a service that embeds."""
    inputs, outputs = [tensor("text", "uint8", 64)], [tensor("vector", "float32", 32)]
    same = {"backend": "torch", "model": "bert", "task": "embed", "max_batch_rows": ROWS}
    return same | {"inputs": inputs, "outputs": outputs} | more


def ids(text: str) -> list[int]:
    """Make the tokens of a text."""
    return [ord(letter) - 32 for letter in text]


def greedy(model: Any, prompt: str, room: int) -> str:
    """Continue a text as transformers does: the reference. The special token "?" is no text."""
    tokens = language_models.greedy(model, ids(prompt), room)
    return "".join("é" if token == 95 else chr(token + 32) for token in tokens if token != 31)


def models(folder: Path) -> Any:
    """Write the models of the services, and return the one that generates."""
    made = language_models.llama(folder / "llama", max_position_embeddings=64)
    language_models.tokenizer(folder / "llama", CHAT)
    language_models.bert(folder / "bert")
    language_models.tokenizer(folder / "bert")
    return made


class LanguageRank(Rank):
    """Answers the child for the time of a `with`.

    Attributes:
        calls: How often the models that generate were called.
        pause: Seconds that each call takes longer.
        most: The most sequences of a call.
    """

    def __init__(self, folder: Path, services: dict[str, Any], **settings: Any) -> None:
        super().__init__(folder, **settings)
        configs = Config.from_dict({"service": services}, folder=folder).services
        self.backends = [backends.create(config) for config in configs]
        for backend in self.backends:
            backend.load()
        self.services = [_described(config) for config in configs]
        self.languages = {config.name: language_of(config) for config in configs}
        self.calls, self.pause, self.most = 0, 0.0, 0
        for steps in self.generators:
            steps._decoder._engine = self._counted(steps._decoder._engine)

    def _counted(self, engine: Any) -> Any:
        def call(**inputs: Any) -> Any:
            self.calls += 1
            self.most = max(self.most, len(inputs["input_ids"]))
            time.sleep(self.pause)
            return engine(**inputs)

        return call

    @property
    def generators(self) -> list[Any]:
        """The models that generate."""
        return [backend.steps for backend in self.backends if backend.steps is not None]

    def _work(self) -> None:
        while not self._ended.is_set():
            busy = any(steps.busy for steps in self.generators)
            select.select([self.link.socket], [], [], 0 if busy else 0.05)
            for message, data in self.link.receive():
                if message["m"] == READY:
                    self._ready.set()
                elif message["m"] == INFER:
                    self._begin(message, data)
            for index, backend in enumerate(self.backends):
                if backend.steps is not None:
                    self._step(index, backend.steps)
            self.link.flush()

    def _begin(self, message: dict[str, Any], data: memoryview) -> None:
        service, backend = self.services[message["s"]], self.backends[message["s"]]
        dtypes = [numpy_dtype(tensor.dtype) for tensor in service.inputs]
        arrays = tuple(array.copy() for array in split(data, message["shapes"], dtypes))
        self.seen.append(len(arrays[0]))
        try:
            if backend.steps is None:
                self._reply(message["s"], message["id"], backend.run(arrays))
            else:
                backend.steps.begin(message["id"], 0, arrays)
        except Exception as error:
            self._refuse(message["id"], error)

    def _step(self, index: int, steps: Steps) -> None:
        for key, result in steps.step().items():
            if isinstance(result, Exception):
                self._refuse(key, result)
            else:
                self._reply(index, key, result)

    def _reply(self, index: int, number: int, result: Any) -> None:
        outputs = self.services[index].outputs
        named = result if isinstance(result, dict) else {outputs[0].name: result[0]}
        arrays = [np.asarray(named[tensor.name], tensor.dtype) for tensor in outputs]
        stats = {"queue_ns": 1, "compute_ns": 1}
        answer = {"m": ANSWER, "id": number, "shapes": [array.shape for array in arrays]}
        self.link.send(answer | {"stats": stats}, arrays)

    def _refuse(self, number: int, error: Exception) -> None:
        self.link.send({"m": ANSWER, "id": number, "code": int(Code.EMODEL), "text": str(error)})


def _described(config: ServiceConfig) -> Any:
    shapes = [[tuple(t.shape) for t in side] for side in (config.inputs, config.outputs)]
    return SimpleNamespace(
        name=config.name,
        version="",
        engine="torch",
        inputs=config.inputs,
        outputs=config.outputs,
        largest_inputs=shapes[0],
        largest_outputs=shapes[1],
        rows="independent",
        max_batch_rows=config.max_batch_rows,
        allow_empty=False,
        uncertainty_limit=None,
    )
