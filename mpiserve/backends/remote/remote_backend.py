"""The backend `remote`: another server runs the model, and this rank passes requests to it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends.arrays import dtype_of
from mpiserve.backends.base import Backend, Steps, check_options
from mpiserve.backends.remote.settings import OPTIONS, OptionError, Settings, settings_of
from mpiserve.errors import ArgumentError, Code, ModelError
from mpiserve.wire import open_inference
from mpiserve.wire.open_inference import DATATYPES, WireError, model_path

if TYPE_CHECKING:
    from mpiserve.backends.remote.servers import Server, Servers

STEP = 1e-3  # seconds that a step waits for an answer: new requests wait for its end
LOOK = 0.2  # seconds between two looks whether a server is ready

logger = logging.getLogger("mpiserve")

Arrays = tuple[np.ndarray, ...]


class RemoteBackend(Backend):
    """Has servers of the Open Inference Protocol answer, such as Triton.

    `model` is the name of the model there, or "name/versions/{version}". Requests are passed one
    by one, many at the same time: batches are the server's. Options: see `Settings`.
    """

    known_options = OPTIONS
    _settings: Settings
    _servers: Servers

    @property
    def engine(self) -> str:
        """The servers."""
        return ", ".join(self._settings.urls)

    def load(self) -> None:
        """Wait for a server that is ready, and compare its model with the signature.

        Raises:
            ArgumentError: If an option is wrong.
            ModelError: If no server is ready in time, or the model does not fit.
        """
        check_options(self.service, OPTIONS)
        try:
            self._settings = settings_of(self.service)
        except OptionError as error:
            key = f"service.{self.service.name}.options.{error.name}"
            raise ArgumentError(Code.EARG, f"{key}: {error}") from None
        for tensor in (*self.service.inputs, *self.service.outputs):
            if tensor.dtype not in DATATYPES:
                text = f"'{tensor.name}' is {tensor.dtype}, which the protocol does not have"
                raise ModelError(Code.EMODEL, text)
        self._path = model_path(self.service.model or "")
        self._servers = _connected(self._settings, self._path)
        self._wait_ready()
        self._dtypes = {tensor.name: dtype_of(tensor) for tensor in self.service.outputs}
        self.steps = RemoteSteps(self, self._settings.connections)

    def run(self, inputs: Arrays) -> Any:
        """Have a server answer one request."""
        return self.answer(inputs, lambda: True)

    def answer(self, inputs: Arrays, wanted: Any) -> dict[str, np.ndarray]:
        """Have a server answer one request, for as long as it is wanted.

        Raises:
            ModelError: If no server answers, or not as the protocol says.
        """
        names = [tensor.name for tensor in self.service.inputs]
        headers, body = open_inference.request(zip(names, inputs, strict=True), self._dtypes)
        reply = self._servers.infer(body, headers, wanted)
        length = reply.headers.get(open_inference.LENGTH)
        try:
            return open_inference.response(reply.data, length, self._dtypes)
        except WireError as error:
            raise ModelError(Code.EMODEL, f"{self.engine}: {error}") from None

    def close(self) -> None:
        """End the requests under way, and close the connections."""
        if isinstance(self.steps, RemoteSteps):
            self.steps.close()
        if hasattr(self, "_servers"):
            self._servers.close()

    # ---- at load

    def _wait_ready(self) -> None:
        """Ask all servers until one is ready; those that answer must have the model."""
        end = time.monotonic() + self._settings.ready_timeout_s
        while True:
            why = {server.url: self._problem(server) for server in self._servers.servers}
            if None in why.values():
                break
            if time.monotonic() > end:
                text = "; ".join(f"{url}: {problem}" for url, problem in why.items())
                seconds = f"{self._settings.ready_timeout_s:g} s"
                raise ModelError(Code.EMODEL, f"no server is ready after {seconds}: {text}")
            time.sleep(LOOK)
        for url, problem in why.items():
            if problem:
                logger.warning("service %s: %s is not ready: %s", self.service.name, url, problem)

    def _problem(self, server: Server) -> str | None:
        """Say why a server is not ready, or return None.

        Raises:
            ModelError: If it is, and has no such model.
        """
        from urllib3.exceptions import HTTPError

        limit = max(LOOK, self._settings.request_timeout_s)
        try:
            reply = server.ask(f"{self._path}/ready", None, {}, limit)
            if reply.status != 200:
                return f"status {reply.status}: {open_inference.error_text(reply.data)}"
            self._compare(server.url, server.ask(self._path, None, {}, limit).data)
        except HTTPError as error:
            return str(error)
        return None

    def _compare(self, url: str, body: bytes) -> None:
        try:
            found = open_inference.metadata(body)
        except WireError as error:
            raise ModelError(Code.EMODEL, f"{url}{self._path}: {error}") from None
        for described, tensors, what in (
            (found.inputs, self.service.inputs, "inputs"),
            (found.outputs, self.service.outputs, "outputs"),
        ):
            mine = [(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
            if wrong := open_inference.mismatch(described, mine, what):
                raise ModelError(Code.EMODEL, f"{url}: {wrong}")


def _connected(settings: Settings, model: str) -> Servers:
    try:
        from mpiserve.backends.remote.servers import Servers
    except ModuleNotFoundError:
        text = "backend 'remote' needs urllib3: pip install 'mpiserve[remote]'"
        raise ModelError(Code.EMODEL, text) from None
    return Servers(settings, model)


class RemoteSteps(Steps):
    """Requests under way at servers: a thread waits for each.

    Args:
        backend: What answers them.
        connections: The most that are under way.
    """

    def __init__(self, backend: RemoteBackend, connections: int) -> None:
        self._backend = backend
        self._most = connections
        self._threads = ThreadPoolExecutor(connections, "mpiserve-remote")
        self._ended: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._wanted: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether requests are under way."""
        return bool(self._wanted)

    @property
    def room(self) -> bool:
        """Whether another request can be under way."""
        return len(self._wanted) < self._most

    def begin(self, key: int, client: int, inputs: Arrays) -> None:
        """Send a request."""
        self._wanted.add(key)
        self._threads.submit(self._work, key, inputs)

    def step(self) -> Mapping[int, Any]:
        """Wait shortly for the next answer, and return all that are there."""
        results: dict[int, Any] = {}
        with suppress(Empty):
            self._take(results, *self._ended.get(timeout=STEP))
            while True:
                self._take(results, *self._ended.get_nowait())
        return results

    def drop(self, key: int) -> None:
        """Forget a request: it is not repeated any more."""
        self._wanted.discard(key)

    def close(self) -> None:
        """Forget all requests."""
        self._wanted.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _take(self, results: dict[int, Any], key: int, result: Any) -> None:
        if key in self._wanted:
            self._wanted.remove(key)
            results[key] = result

    def _work(self, key: int, inputs: Arrays) -> None:
        try:
            result: Any = self._backend.answer(inputs, lambda: key in self._wanted)
        except Exception as error:
            result = error
        self._ended.put((key, result))
