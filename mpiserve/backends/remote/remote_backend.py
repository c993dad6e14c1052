"""The backend `remote`: another server runs the model, and this rank passes requests to it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends.base import Backend, Steps, check_options
from mpiserve.backends.remote.api import Api, Arrays, Message, Reply
from mpiserve.backends.remote.open_inference_api import OpenInference
from mpiserve.backends.remote.openai_api import OpenAI
from mpiserve.backends.remote.settings import OPTIONS, OptionError, Settings, settings_of
from mpiserve.errors import ArgumentError, Code, ModelError
from mpiserve.wire.json_body import WireError, error_text

if TYPE_CHECKING:
    from mpiserve.backends.remote.servers import Server, Servers
    from mpiserve.config import ServiceConfig

STEP = 1e-3  # seconds that a step waits for an answer: new requests wait for its end
LOOK = 0.2  # seconds between two looks whether a server is ready

logger = logging.getLogger("mpiserve")


class RemoteBackend(Backend):
    """Has servers answer, such as Triton by the Open Inference Protocol, or vLLM by OpenAI's API.

    `model` is the name of the model there, or "name/versions/{version}" for Triton. Requests are
    passed one by one, many at the same time: batches are the server's. Options: see `Settings`.
    """

    known_options = OPTIONS
    steps: RemoteSteps | None = None
    connections = 0  # the most requests under way
    _settings: Settings
    _api: Api
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
        self.connect()
        self._wait_ready()

    def connect(self, *, patient: bool = True) -> None:
        """Read the options, without waiting for a server.

        Args:
            patient: Whether requests are repeated until their time is over; otherwise they fail
                once each server has failed.

        Raises:
            ArgumentError: If an option is wrong.
            ModelError: If the protocol has not what the signature needs.
        """
        check_options(self.service, OPTIONS)
        try:
            self._settings = settings_of(self.service)
        except OptionError as error:
            key = f"service.{self.service.name}.options.{error.name}"
            raise ArgumentError(Code.EARG, f"{key}: {error}") from None
        self._api = api_of(self.service, self._settings)
        self._servers = _connected(self._settings, self._api, patient)
        self.connections = self._settings.connections
        self.steps = RemoteSteps(self, self.connections)

    def run(self, inputs: Arrays) -> Any:
        """Have a server answer one request."""
        return self.results([self.answer(m, lambda: True) for m in self.messages(inputs)])

    def messages(self, inputs: Arrays) -> list[Message]:
        """Make the messages of a request."""
        return self._api.messages(inputs)

    def answer(self, message: Message, wanted: Callable[[], bool]) -> Reply:
        """Have a server answer one message, for as long as it is wanted.

        Raises:
            ModelError: If no server answers.
        """
        reply = self._servers.infer(message, wanted)
        return Reply(reply.headers, reply.data)

    def results(self, replies: Sequence[Reply]) -> Mapping[str, np.ndarray]:
        """Make the outputs of a request of all replies to its messages.

        Raises:
            ModelError: If a server has not answered as the protocol says.
        """
        try:
            return self._api.results(replies)
        except WireError as error:
            raise ModelError(Code.EMODEL, f"{self.engine}: {error}") from None

    def close(self) -> None:
        """End the requests under way, and close the connections."""
        if self.steps:
            self.steps.close()
        if hasattr(self, "_servers"):
            self._servers.close()

    # ---- at load

    def _wait_ready(self) -> None:
        """Ask all servers until one is ready; those that answer must have the model."""
        end = time.monotonic() + self._settings.ready_timeout_s
        while True:
            limit = max(LOOK, min(self._settings.request_timeout_s, end - time.monotonic()))
            why = {server.url: self._problem(server, limit) for server in self._servers.servers}
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

    def problem(self, limit: float) -> str | None:
        """Ask all servers once, and say why none is ready; None if one is. Any thread may.

        Args:
            limit: The seconds that a server may take to answer.

        Raises:
            ModelError: If one is, and has no such model.
        """
        why = {server.url: self._problem(server, limit) for server in self._servers.servers}
        return None if None in why.values() else "; ".join(map(": ".join, why.items()))  # type: ignore[arg-type]

    def _problem(self, server: Server, limit: float) -> str | None:
        """Say why a server is not ready, or return None.

        Raises:
            ModelError: If it is, and has no such model.
        """
        from urllib3.exceptions import HTTPError

        def ask(message: Message) -> tuple[int, bytes]:
            reply = server.ask(message, limit)
            return reply.status, reply.data

        try:
            status, body = ask(Message(self._api.ready_path))
            if status not in self._api.ready:
                return f"status {status}: {error_text(body)}"
            self._api.compare(server.url, ask)
        except HTTPError as error:
            return str(error)
        except WireError as error:
            raise ModelError(Code.EMODEL, f"{server.url}: {error}") from None
        server.well()
        return None


def api_of(service: ServiceConfig, settings: Settings) -> Api:
    """Make the protocol of a service.

    Raises:
        ModelError: If the signature has what the protocol has not.
    """
    return OpenAI(service, settings) if settings.api == "openai" else OpenInference(service)


def _connected(settings: Settings, api: Api, patient: bool) -> Servers:
    try:
        from mpiserve.backends.remote.servers import Servers
    except ModuleNotFoundError:
        text = "backend 'remote' needs urllib3: pip install 'mpiserve[remote]'"
        raise ModelError(Code.EMODEL, text) from None
    return Servers(settings, api, patient)


class Answers:
    """The replies to a request, as they come.

    Args:
        count: The number of its messages.

    Attributes:
        since: When it was sent.
    """

    def __init__(self, count: int) -> None:
        self.since = time.monotonic()
        self._replies: list[Reply | None] = [None] * count
        self._missing = count

    def add(self, index: int, reply: Reply) -> list[Reply] | None:
        """Add one; return all of them if this is the last."""
        self._replies[index] = reply
        self._missing -= 1
        return None if self._missing else [reply for reply in self._replies if reply]


class RemoteSteps(Steps):
    """Requests under way at servers: a thread waits for each message.

    Args:
        backend: What answers them.
        connections: The most that are under way.

    Attributes:
        seconds: What the requests took that have ended last, by key.
    """

    def __init__(self, backend: RemoteBackend, connections: int) -> None:
        self._backend = backend
        self._most = connections
        self._threads = ThreadPoolExecutor(connections, "mpiserve-remote")
        self._ended: SimpleQueue[tuple[int, int, Reply | Exception, float]] = SimpleQueue()
        self.seconds: dict[int, float] = {}
        self._answers: dict[int, Answers] = {}

    @property
    def busy(self) -> bool:
        """Whether requests are under way."""
        return bool(self._answers)

    @property
    def room(self) -> bool:
        """Whether another request can be under way."""
        return len(self._answers) < self._most

    def begin(self, key: int, client: int, inputs: Arrays) -> None:
        """Send a request."""
        messages = self._backend.messages(inputs)
        self._answers[key] = Answers(len(messages))
        for index, message in enumerate(messages):
            self._threads.submit(self._work, key, index, message)

    def step(self) -> Mapping[int, Any]:
        """Wait shortly for the next answer, and return all that are there."""
        return self.ended(STEP)

    def ended(self, wait: float) -> Mapping[int, Any]:
        """Return the answers that are there; wait so many seconds if there is none."""
        results: dict[int, Any] = {}
        self.seconds.clear()
        with suppress(Empty):
            self._take(results, *self._ended.get(wait > 0, wait or None))
            while True:
                self._take(results, *self._ended.get_nowait())
        return results

    def drop(self, key: int) -> None:
        """Forget a request: it is not repeated any more."""
        self._answers.pop(key, None)

    def close(self) -> None:
        """Forget all requests."""
        self._answers.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _take(
        self, results: dict[int, Any], key: int, index: int, reply: Reply | Exception, now: float
    ) -> None:
        answers = self._answers.get(key)
        if answers is None:
            return
        if isinstance(reply, Exception):
            results[key] = reply
        elif replies := answers.add(index, reply):
            try:
                results[key] = self._backend.results(replies)
            except Exception as error:
                results[key] = error
        if key in results:
            self.seconds[key] = now - answers.since
            del self._answers[key]

    def _work(self, key: int, index: int, message: Message) -> None:
        if key not in self._answers:
            return
        try:
            reply: Reply | Exception = self._backend.answer(message, lambda: key in self._answers)
        except Exception as error:
            reply = error
        self._ended.put((key, index, reply, time.monotonic()))
