"""The child of a gateway without a job: its rank is a thread that doubles numbers."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mpiserve.config.gateway import GatewayConfig
from mpiserve.config.gateway_files import check_files
from mpiserve.config.tensor import Tensor
from mpiserve.errors import Code
from mpiserve.gateway.child import Child
from mpiserve.gateway.endpoint import Endpoint
from mpiserve.gateway.link import (
    ANSWER,
    CHANGE,
    DRAIN,
    HELLO,
    INFER,
    READY,
    STATES,
    Link,
    LinkError,
    split,
)
from mpiserve.gateway.tables import table_of
from mpiserve.gateway.tokens import told
from mpiserve.wire.open_inference import DATATYPES, numpy_dtype

MOST = 1 << 30
FAILS, LATE = -13, -14
LOST = "lost"  # the name of a service that could not load


def service(name: str, dtype: str, rows: str = "independent") -> Any:
    """Describe a service whose y is 2 x, or x where that has no number 2."""
    shape = (-1, 3) if rows != "none" else (3,)
    return SimpleNamespace(
        name=name,
        version="",
        engine="echo",
        inputs=(Tensor("x", dtype, shape),),
        outputs=(Tensor("y", dtype, shape),),
        largest_inputs=(shape,),
        largest_outputs=(shape,),
        rows=rows,
        max_batch_rows=64,
        allow_empty=False,
        uncertainty_limit=None,
    )


class Rank:
    """Answers the child for the time of a `with`.

    A request of floats with the number -13 fails, and one with -14 is late: it ends `late_s`
    seconds later.

    Attributes:
        late_s: That time.
        seen: The rows of each request that has come.
        changes: What has come to load and unload models.
        late: The requests that are late, and when their time is over.
        endpoint: Where clients come.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.services = [service(dtype, dtype) for dtype in DATATYPES]
        self.services += [service("whole", "float32", "none"), service("z", "complex64")]
        self.languages: dict[str, Any] = {}
        config = GatewayConfig(**settings)
        names = [*(each.name for each in self.services), LOST]
        self.tokens = check_files(config, folder, names)
        self.endpoint = Endpoint(config, folder)
        self.child = Child(config, self.endpoint, 0, 1, folder)
        self.seen: list[int] = []
        self.changes: list[tuple[str, str]] = []
        self.late: list[tuple[float, Any]] = []
        self.late_s = 0.5
        self._ready, self._ended, self._drains = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Rank:
        self.link = Link(self.child.start(), MOST)
        tables = [table_of(service, i) for i, service in enumerate(self.services)]
        tokens = told(self.endpoint.token, self.tokens)
        hello = {"m": HELLO, "services": tables, "languages": self.languages, "tokens": tokens}
        self.link.send(hello)
        states = {service.name: "ready" for service in self.services} | {LOST: "failed"}
        self.link.send({"m": STATES, "states": states, "reasons": {LOST: "no weights"}})
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(LinkError):  # after `drain` the child may have gone
            self.link.send({"m": DRAIN})
        self.status = self.child.end(10)
        self.endpoint.close()

    def _run(self) -> None:
        with suppress(LinkError):  # the child has gone: its status says why
            self._work()

    def _work(self) -> None:
        while self.late or not self._ended.is_set():
            select.select([self.link.socket], [], [], 0.05)
            for table, data in self.link.receive():
                if table["m"] == READY:
                    self._ready.set()
                elif table["m"] == INFER:
                    self._answer(table, data)
                elif table["m"] == CHANGE:
                    self.changes.append((table["what"], table["name"]))
                    self.link.send({"m": ANSWER, "id": table["id"], "shapes": [], "stats": None})
            if self._drains.is_set():
                self._drains.clear()
                self.link.send({"m": DRAIN})
            over = [late for late in self.late if late[0] < time.monotonic()]
            for late in over:
                self.late.remove(late)
                self.link.send(late[1])
            self.link.flush()

    def _answer(self, table: dict[str, Any], data: memoryview) -> None:
        dtype = numpy_dtype(self.services[table["s"]].inputs[0].dtype)
        (x,) = split(data, table["shapes"], [dtype])
        self.seen.append(x.shape[0])
        answer = {"m": ANSWER, "id": table["id"]}
        if dtype.kind == "f" and (x == LATE).any():
            late = answer | {"code": int(Code.EDEADLINE), "text": "too late"}
            self.late.append((time.monotonic() + self.late_s, late))
            return
        if dtype.kind == "f" and (x == FAILS).any():
            self.link.send(answer | {"code": int(Code.EMODEL), "text": "-13 is not a number"})
            return
        y = x if dtype == np.bool_ else (x * 2).astype(dtype)
        stats = {"queue_ns": 1, "compute_ns": 1}
        self.link.send(answer | {"shapes": [y.shape], "stats": stats}, [y])

    def drain(self) -> None:
        """Say that the job ends, while requests are under way."""
        self._drains.set()

    # ---- clients

    def connect(self) -> socket.socket:
        """Connect, and no more."""
        if self.endpoint.url.startswith("http"):
            host, port = self.endpoint.url.removeprefix("http://").split(":")
            return socket.create_connection((host, int(port)), 20)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(20)
        made.connect(self.endpoint.url.removeprefix("unix:"))
        return made

    def ask(
        self, path: str, body: bytes | None = None, method: str = "", **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Send a request with the token, and return status, JSON or bytes, and headers."""
        client = http.client.HTTPConnection("localhost")
        client.sock = self.connect()
        given = {"Authorization": f"Bearer {self.endpoint.token}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        client.request(method or ("GET" if body is None else "POST"), path, body, given)
        reply = client.getresponse()
        data = reply.read()
        client.close()
        kind = reply.headers.get("Content-Type", "")
        return reply.status, json.loads(data) if "json" in kind else data, dict(reply.headers)
