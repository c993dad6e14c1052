"""The gateway's rank: it passes the requests of its child to the job, and their answers back.

Neither HTTP nor code that clients reach is in the process that holds MPI.
"""

from __future__ import annotations

import logging
import select
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.config import Config
from mpiserve.config.gateway import GatewayConfig
from mpiserve.config.gateway_files import check_files
from mpiserve.errors import Code, Error
from mpiserve.failure import describe
from mpiserve.gateway.child import Child, Watch, lacking
from mpiserve.gateway.endpoint import Endpoint
from mpiserve.gateway.link import (
    ANSWER,
    CHANGE,
    DRAIN,
    HELLO,
    INFER,
    PING,
    READY,
    STATES,
    Link,
    LinkError,
    split,
)
from mpiserve.gateway.tables import language_of, most_bytes, table_of
from mpiserve.gateway.tokens import told
from mpiserve.wire.open_inference import numpy_dtype

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.session import Session

FIRST_NAP, LONGEST_NAP = 20e-6, 500e-6  # seconds between two looks for replies
LOOK = 0.1  # seconds between two looks at the states, and the longest sleep
DRAIN_S = 4.0  # seconds that a child has to end: heads wait 5 s for this rank
LONGEST_START = 300.0  # seconds that a child has to be ready
CHANGE_S = 300.0  # seconds in which a model must load; other requests wait meanwhile
GONE = "gone"

logger = logging.getLogger("mpiserve")


def serve(session: Session, config: Config, rank: int) -> None:
    """Answer clients until the last simulation rank has left. On a gateway rank.

    What goes wrong is logged: the simulation goes on without a gateway.
    """
    names = [service.name for service in config.services]
    try:
        bridge = _opened(session, config, rank)
        try:
            while not _is_over(session, names):
                bridge.work(LOOK)
        finally:
            bridge.close()
    except Error as error:
        logger.error("there is no gateway: %s", error)
    except Exception:
        logger.exception("the gateway has failed, and the simulation goes on without it")
    while not _is_over(session, names):  # here, because MPI_Finalize would take a core
        time.sleep(LOOK)


def _opened(session: Session, config: Config, rank: int) -> Bridge:
    table = config.gateway or GatewayConfig()
    if text := lacking(table):
        raise Error(Code.ECONFIG, text)
    folder = Path(config.source).resolve().parent
    others = check_files(table, folder, [service.name for service in config.services])
    endpoint = Endpoint(table, folder)
    child = Child(table, endpoint, rank, session.run, folder)
    return Bridge(session, config, child, endpoint, told(endpoint.token, others))


def _is_over(session: Session, names: list[str]) -> bool:
    """Whether all heads say that every simulation rank has left."""
    return all(state.state == GONE for name in names for state in session.states(name))


class _Pending:
    """A request under way for the child."""

    def __init__(self, number: int, request: core.Request, service: core.Service) -> None:
        self.number, self.request, self._service = number, request, service

    def result(self) -> tuple[np.ndarray, ...]:
        """Return the outputs that its child knows: where rows may be doubted, which are trusted.

        Raises:
            Error: If it has ended with one.
        """
        outputs = self.request.result(0)
        arrays = outputs if isinstance(outputs, tuple) else (outputs,)
        if self._service.uncertainty_limit is None:
            return arrays
        trusted: Any = self.request.trusted
        return (*arrays, trusted[0] if self._service.rows == "none" else trusted)


class Bridge:
    """The link between the job and a child, whichever child it is.

    Args:
        session: Of this rank.
        config: The configuration.
        child: The child, which is not started yet.
        endpoint: Where clients come.
        tokens: Those of clients, as the child takes them.
    """

    def __init__(
        self,
        session: Session,
        config: Config,
        child: Child,
        endpoint: Endpoint,
        tokens: list[list[Any]],
    ) -> None:
        self._session = session
        self._tokens = tokens
        self._names = [service.name for service in config.services]
        self._services = [session.service(service.name) for service in session.services]
        known = {service.name for service in self._services}
        self._languages = {
            service.name: language_of(service)
            for service in config.services
            if service.name in known
        }
        self._dtypes = [[numpy_dtype(t.dtype) for t in s.inputs] for s in self._services]
        self._child = child
        self._endpoint = endpoint
        self._link: Link | None = None
        self._pending: list[_Pending] = []
        self._nap = FIRST_NAP
        self._told: Any = None
        self._announced = False
        self._limit_s = (config.gateway or GatewayConfig()).process_timeout_s
        self._watch: Watch | None = None
        self._is_ready = False

    def work(self, seconds: float) -> None:
        """Pass messages on for some seconds."""
        end = time.monotonic() + seconds
        self._tell_states()
        while (left := end - time.monotonic()) > 0:
            if self._link is None and self._child.may_start:
                self._start()
            try:
                moved = self._pass_on()
            except LinkError as error:
                self._lose(error)
                continue
            if moved:
                self._nap = FIRST_NAP
            else:
                self._sleep(left)
        self._look()

    def close(self) -> None:
        """Let the child end its requests, and end it; forget what is left."""
        self._send({"m": DRAIN})
        end = time.monotonic() + DRAIN_S
        self._child.drains = True
        while self._link and time.monotonic() < end:
            self.work(0.01)
        self._child.end(0)
        self._cancel()
        self._endpoint.close()

    # ---- the child

    def _start(self) -> None:
        if self._child.drains:
            return
        most = max((most_bytes(service) for service in self._services), default=0)
        try:
            self._link, self._told = Link(self._child.start(), most), None
        except OSError as error:
            self._child.lose()
            logger.error("the gateway's process cannot be started, later perhaps: %s", error)
            return
        self._watch, self._is_ready = Watch(LONGEST_START), False
        tables = [table_of(service, i) for i, service in enumerate(self._services)]
        hello = {"m": HELLO, "services": tables, "languages": self._languages}
        self._send(hello | {"tokens": self._tokens})
        self._tell_states()

    def _lose(self, error: LinkError) -> None:
        assert self._link
        self._link.socket.close()
        self._link = self._watch = None
        how = self._child.lose()
        self._cancel()
        if not self._child.drains:
            logger.error("the gateway's process has ended (%s, %s); another one starts", how, error)

    def _look(self) -> None:
        """End a child that hangs: clients would wait for it as long as the job lasts."""
        if self._watch is None:
            return
        if self._watch.look():
            self._send({"m": PING})
        if self._watch and self._watch.hangs:
            silent = f"it said nothing for process_timeout_s = {self._limit_s:g} s"
            late = f"it was not ready within {LONGEST_START:g} s"
            self._lose(LinkError(silent if self._is_ready else late))

    def _cancel(self) -> None:
        for pending in self._pending:
            pending.request.cancel()
        self._pending.clear()

    def _send(self, table: dict[str, Any], arrays: Any = ()) -> None:
        try:
            if self._link:
                self._link.send(table, arrays)
        except LinkError as error:
            self._lose(error)

    def _tell_states(self) -> None:
        """Tell the child how the services are, when that has changed."""
        states, reasons = {}, {}
        for name in self._names:
            found = self._session.states(name)
            states[name] = min((state.state for state in found), key=_usefulness, default=GONE)
            if not any(service.name == name for service in self._services):
                reasons[name] = _reason(self._session, name)
        if self._link and (states, reasons) != self._told:
            self._told = states, reasons
            self._send({"m": STATES, "states": states, "reasons": reasons})

    # ---- messages

    def _sleep(self, left: float) -> None:
        """Sleep until the child says something; with requests under way, until one has its answer.

        Nothing wakes a rank for either. The one under way for longest has its answer first, mostly.
        """
        if self._link is None:
            time.sleep(min(left, LOOK / 10))
        elif self._pending:
            self._nap = min(2 * self._nap, LONGEST_NAP)
            with suppress(Error):  # `_answer` raises it again
                self._pending[0].request.result(self._nap)
        else:
            writers = [self._link.socket] if self._link.is_full else []
            select.select([self._link.socket], writers, [], left)

    def _pass_on(self) -> bool:
        """Take what the child has sent, and send it the answers that are there."""
        if self._link is None:
            return False
        moved = False
        self._link.flush()
        for table, data in self._link.receive():
            moved = True
            self._obey(table, data)
        for pending in [one for one in self._pending if _done(one.request)]:
            moved = True
            self._pending.remove(pending)
            self._answer(pending)
        return moved

    def _obey(self, table: dict[str, Any], data: memoryview) -> None:
        if self._watch:
            self._watch.hear()
        try:
            if table["m"] == INFER:
                self._submit(table, data)
            elif table["m"] == CHANGE:
                self._change(table)
            elif table["m"] == READY:
                self._watch, self._is_ready = Watch(self._limit_s), True
                self._announce()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise LinkError(f"a message that makes no sense: {describe(error)}") from None

    def _announce(self) -> None:
        if not self._announced:
            print(f"mpiserve endpoint file: {self._endpoint.file}", flush=True)
            print(f"mpiserve endpoint: {self._endpoint.url}", flush=True)
            if self._endpoint.grpc:
                logger.info("it answers gRPC at %s", self._endpoint.grpc.url)
            logger.info("the gateway is ready; its token is in %s", self._endpoint.file)
        self._announced = True

    def _submit(self, table: dict[str, Any], data: memoryview) -> None:
        index = table["s"]
        arrays = split(data, table["shapes"], self._dtypes[index])
        service = self._services[index]
        try:
            request = service.submit(*arrays, deadline=table["d"], priority=table["p"])
        except Error as error:
            self._refuse(table["id"], error)
            return
        self._pending.append(_Pending(table["id"], request, service))

    def _answer(self, pending: _Pending) -> None:
        try:
            arrays = pending.result()
        except Error as error:
            self._refuse(pending.number, error)
            return
        table = {
            "m": ANSWER,
            "id": pending.number,
            "shapes": [array.shape for array in arrays],
            "stats": pending.request.stats,
        }
        self._send(table, [np.ascontiguousarray(array) for array in arrays])

    def _refuse(self, number: int, error: Error) -> None:
        self._send({"m": ANSWER, "id": number, "code": int(error.code), "text": str(error)})

    def _change(self, table: dict[str, Any]) -> None:
        try:
            if table["what"] == "unload":
                self._session.unload(table["name"], CHANGE_S)
            else:
                self._session.reload(table["name"], table["version"], CHANGE_S)
        except Error as error:
            self._refuse(table["id"], error)
            return
        self._send({"m": ANSWER, "id": table["id"], "shapes": [], "stats": None})


def _done(request: core.Request) -> bool:
    try:
        return request.done()
    except Error:  # `result` raises it again
        return True


def _reason(session: Session, name: str) -> str:
    try:
        session.service(name)
    except Error as error:
        return str(error)
    return ""


ORDER = ("ready", "busy", "suspended", "restarting", "loading", "launched", "failed", GONE)


def _usefulness(state: str) -> int:
    return ORDER.index(state)
