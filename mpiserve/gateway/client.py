"""`mpiserve.connect`: the client outside of the job, with the interface of a session."""

from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mpiserve.backends.remote.api import Message
from mpiserve.backends.remote.settings import APIS, ENDPOINTS, SCHEMES, Settings
from mpiserve.config.tensor import Tensor
from mpiserve.errors import Code, Error, NotFoundError, PeerError, RequestTimeout
from mpiserve.gateway.arguments import checked
from mpiserve.gateway.endpoint import read_file
from mpiserve.gateway.errors import CODE, error_of
from mpiserve.gateway.request import RemoteRequest
from mpiserve.wire import open_inference as wire
from mpiserve.wire.json_body import WireError, error_text, read_table

CONNECTIONS = 16
LIMIT_S = 3600.0  # seconds that an answer may take if nobody says otherwise
MORE_S = 5.0  # seconds beyond a deadline, in which the gateway says that it is over
BACKGROUND_S = 600.0  # of a change


def connect(
    url: str | Path,
    token: str | None = None,
    *,
    connections: int = CONNECTIONS,
    ca_file: str | None = None,
) -> RemoteSession:
    """Connect to the gateway of a job, from outside.

    Args:
        url: The address that the job has printed, as "unix:/path" or "http://127.0.0.1:8000", or
            the name of its endpoint file, which has the token too.
        token: Of the gateway; by default MPISERVE_TOKEN of the environment.
        connections: The most requests under way.
        ca_file: The certificates that "https://" trusts; by default the system's.

    Returns:
        What can be used as the session of a simulation rank: `service`, calls, `submit`.

    Raises:
        PeerError: If there is no gateway.
        ArgumentError: If the token is wrong.
        Error: If the file is none of a gateway, or urllib3 is not installed.
    """
    given = str(url)
    if not given.startswith(SCHEMES):
        table = read_file(given)
        given, token = table["url"], token or table["token"]
    token = token or os.environ.get("MPISERVE_TOKEN", "")
    return RemoteSession(given.rstrip("/"), token, connections, ca_file)


class RemoteSession:
    """The result of `mpiserve.connect`. A context manager; threads may use it at the same time.

    A forked child may not: all calls raise an error there.

    Attributes:
        role: "outside".
        url: The address of the gateway.
    """

    role = "outside"

    def __init__(self, url: str, token: str, connections: int, ca_file: str | None) -> None:
        try:
            from mpiserve.backends.remote.servers import Server
        except ModuleNotFoundError:
            text = "connect needs urllib3: pip install 'mpiserve[remote]'"
            raise Error(Code.EARG, text) from None
        settings = Settings(
            *((url,), connections, LIMIT_S, 0.0, token, ca_file),
            *(APIS[0], ENDPOINTS[0], "", {}),
        )
        self.url = url
        self._server = Server(url, settings)
        self._threads = ThreadPoolExecutor(connections, "mpiserve-connect")
        self._requests: set[RemoteRequest] = set()  # that have not ended
        self._closed = False
        self._process = os.getpid()
        self._services: dict[str, RemoteService] = {}
        self._names = [entry["name"] for entry in self._index()]

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def services(self) -> tuple[RemoteService, ...]:
        """The services of the job that could be loaded."""
        return tuple(self.service(entry["name"]) for entry in self._index() if "version" in entry)

    def service(self, name: str) -> RemoteService:
        """Find a service.

        Raises:
            NotFoundError: If there is no service of this name.
            ModelError: If none of its replicas could load its model.
        """
        if name not in self._services:
            if name not in self._names:
                known = ", ".join(f"'{each}'" for each in self._names)
                text = f"no service '{name}' at {self.url}; there is {known}"
                raise NotFoundError(Code.ENOTFOUND, text)
            table = read_table(self.ask(wire.model_path(name)).data)
            self._services[name] = RemoteService(self, table)
        return self._services[name]

    def reload(self, name: str, version: str = "", timeout: float | None = None) -> None:
        """Load another version of a service's model, as `Session.reload` does."""
        body = wire.dump({"parameters": {"version": version}})
        limit = BACKGROUND_S if timeout is None else timeout
        self.ask(f"/v2/repository/models/{name}/load", body, limit=limit)

    def unload(self, name: str, timeout: float | None = None) -> None:
        """Free the memory of a service's model, as `Session.unload` does."""
        limit = BACKGROUND_S if timeout is None else timeout
        self.ask(f"/v2/repository/models/{name}/unload", b"{}", limit=limit)

    def close(self, timeout: float | None = None) -> None:
        """End the requests under way, and the connections. A second call does nothing.

        A thread that waits for a request gets an error, with code ESTATE.
        """
        if os.getpid() != self._process:  # the connections are the other process's
            return
        self._closed = True
        # Without cancel_futures: that calls callbacks under a lock which their `submit` needs, and
        # leaves threads asleep that wait for a future.
        self._threads.shutdown(wait=False)
        for request in tuple(self._requests):
            request.fail(_closed())
        self._server.close()

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: float = LIMIT_S,
    ) -> Any:
        """Send a request over HTTP; for this module.

        Raises:
            Error: What the gateway says; PeerError if it does not answer.
        """
        from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError

        for again in (True, False):
            self._check()
            try:
                reply = self._server.ask(Message(path, headers or {}, body), limit)
                break
            except ProtocolError as error:
                # A connection that was kept may have been closed meanwhile.
                if not again:
                    raise self._unreachable(error) from None
            except ReadTimeoutError:
                text = f"no answer from {self.url} within {limit:g} s"
                raise RequestTimeout(Code.ETIMEOUT, text) from None
            except HTTPError as error:
                raise self._unreachable(error) from None
        if reply.status != 200:
            text = error_text(reply.data)
            raise error_of(reply.status, reply.headers.get(CODE), text)
        return reply

    def begin(self, name: str, join: Any, works: Sequence[Any]) -> RemoteRequest:
        """Have threads do the works of a request; for this module.

        Args:
            name: Of the service.
            join: Makes the result of what the works return.
            works: Functions without arguments.

        Raises:
            Error: If the session is closed, or this is a forked child.
        """
        self._check()
        request = RemoteRequest(name, join)
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)
        try:
            request.wait_for([self._threads.submit(work) for work in works])
        except RuntimeError:
            request.fail(_closed())
            raise _closed() from None
        return request

    def _check(self) -> None:
        if os.getpid() != self._process:
            text = "this process was forked from the one that has connected, which alone may"
            raise Error(Code.ESTATE, f"{text} use the session")
        if self._closed:
            raise _closed()

    def _index(self) -> list[Any]:
        return wire.read_list(self.ask("/v2/repository/index", b"{}").data)

    def _unreachable(self, error: Exception) -> Error:
        if self._closed:
            return _closed()
        why = str(error).rpartition(": ")[2]
        return PeerError(Code.EPEER, f"no gateway answers at {self.url}: {why}")


def _closed() -> Error:
    return Error(Code.ESTATE, "the session is closed")


class RemoteService:
    """A service of the job, with the attributes and calls of `Service` inside.

    It has no `fallback`, no in-place memory, and no `stream`.

    Attributes:
        name: Of the service.
        inputs: The signature's inputs: (name, dtype, shape).
        outputs: The signature's outputs.
        version: The name of the model's version.
        rows: "independent", "together" or "none".
        max_batch_rows: The most rows of a batch; larger requests are cut into pieces.
        allow_empty: Whether requests may have 0 rows.
    """

    def __init__(self, session: RemoteSession, table: Mapping[str, Any]) -> None:
        more = table.get("mpiserve")
        if not isinstance(more, dict):
            text = f"{session.url} is no gateway of mpiserve: use the backend 'remote' with it"
            raise Error(Code.EARG, text)
        found = wire.read_metadata(table)
        self._session = session
        self.name = str(table["name"])
        self.version = str(table["versions"][0])
        self.inputs = tuple(_tensor(self.name, one) for one in found.inputs)
        self.outputs = tuple(_tensor(self.name, one) for one in found.outputs)
        self.largest_inputs = tuple(map(tuple, more["largest_inputs"]))
        self.largest_outputs = tuple(map(tuple, more["largest_outputs"]))
        self.rows: str = more["rows"]
        self.max_batch_rows: int = more["max_batch_rows"]
        self.allow_empty: bool = more["allow_empty"]
        self._dtypes = {t.name: wire.numpy_dtype(t.dtype) for t in self.outputs}
        names = [tensor.name for tensor in self.outputs]
        self._results = namedtuple("Outputs", names, rename=True) if len(names) > 1 else None

    def __call__(
        self,
        *arrays: Any,
        out: Any = None,
        timeout: float | None = None,
        priority: int = 0,
        **named: Any,
    ) -> Any:
        """Submit a request and wait for its result, as `Service` does."""
        request = self.submit(*arrays, out=out, priority=priority, **named)
        try:
            return request.result(timeout)
        except RequestTimeout:
            request.cancel()
            raise

    def submit(
        self,
        *arrays: Any,
        out: Any = None,
        deadline: float | None = None,
        priority: int = 0,
        **named: Any,
    ) -> RemoteRequest:
        """Begin a request and return it, as `Service.submit` does."""
        inputs = checked(self, arrays, named)
        pieces = self._pieces(inputs)
        parameters: dict[str, Any] = {"mpiserve_priority": priority}
        if deadline is not None:
            parameters["timeout"] = max(0, int(deadline * 1e6))
        limit = LIMIT_S if deadline is None else deadline + MORE_S
        works = [partial(self._ask, piece, parameters, limit) for piece in pieces]
        return self._session.begin(self.name, partial(self._joined, out=out), works)

    def vjp(self, *arrays: Any, **options: Any) -> Any:
        """Request y = f(x) and v J from the service `NAME.vjp`, as `Service.vjp` does."""
        return self._session.service(f"{self.name}.vjp")(*arrays, **options)

    def jvp(self, *arrays: Any, **options: Any) -> Any:
        """As `Service.jvp`."""
        return self._session.service(f"{self.name}.jvp")(*arrays, **options)

    def jacobian(self, *arrays: Any, **options: Any) -> Any:
        """As `Service.jacobian`."""
        return self._session.service(f"{self.name}.jacobian")(*arrays, **options)

    def check_threads(self) -> None:
        """Do nothing: any thread may use a service outside of the job."""

    def _joined(self, parts: Sequence[dict[str, np.ndarray]], out: Any) -> Any:
        """Make the result of the answers to the pieces."""
        arrays = [
            parts[0][t.name] if len(parts) == 1 else np.concatenate([p[t.name] for p in parts])
            for t in self.outputs
        ]
        if out is not None:
            given = out if isinstance(out, tuple) else (out,)
            for to, array in zip(given, arrays, strict=True):
                to[...] = array
            return out
        arrays = [array if array.flags.writeable else array.copy() for array in arrays]
        return arrays[0] if self._results is None else self._results(*arrays)

    def _pieces(self, inputs: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        rows = inputs[0].shape[0] if self.rows == "independent" and inputs else 0
        if rows <= self.max_batch_rows:
            return [list(inputs)]
        most = self.max_batch_rows
        return [[array[at : at + most] for array in inputs] for at in range(0, rows, most)]

    def _ask(
        self, inputs: Sequence[np.ndarray], parameters: Mapping[str, Any], limit: float
    ) -> dict[str, np.ndarray]:
        names = [tensor.name for tensor in self.inputs]
        headers, body = wire.request(
            zip(names, inputs, strict=True), self._dtypes, parameters=parameters
        )
        reply = self._session.ask(f"{wire.model_path(self.name)}/infer", body, headers, limit)
        try:
            return wire.response(reply.data, reply.headers.get(wire.LENGTH), self._dtypes)
        except WireError as error:
            raise Error(Code.EMODEL, f"{self._session.url}: {error}") from None

    def __repr__(self) -> str:
        return f"<service {self.name!r} at {self._session.url}>"


def _tensor(service: str, described: wire.Described) -> Tensor:
    if described.datatype not in wire.DTYPES:
        text = f"service '{service}': '{described.name}' is {described.datatype}, which the"
        raise Error(Code.EDTYPE, f"{text} protocol does not have")
    return Tensor(described.name, wire.DTYPES[described.datatype], described.shape)
