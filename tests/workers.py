"""An inference rank without MPI: the session handle is played, the rest is real."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from mpiserve import Backend
from mpiserve.config import Config
from mpiserve.config.partition import Assignment
from mpiserve.errors import ChangeError, ClosedError, Code
from mpiserve.serving import loading
from mpiserve.serving.worker import Worker

FLOATS = {"dtype": "float32", "shape": [-1, 2]}


class FakeLib:
    """Plays the session handle of an inference rank: hands out what comes, keeps the answers.

    What comes is one item for each time that the worker asks: a batch, None for nothing, or the
    change that a client asks for. Then all clients have left.
    """

    def __init__(self, *comes: Any) -> None:
        self.comes = list(comes)
        self.published: Any = None
        self.descriptions: tuple[Any, ...] = ()
        self.answers: list[Any] = []
        self.timeouts: list[float] = []
        self.rooms: list[tuple[int, bool]] = []
        self.states: list[tuple[int, str]] = []
        self.changed: list[tuple[int, int]] = []
        self.engines: list[tuple[int, Any]] = []

    def publish(self, *descriptions: dict[str, Any]) -> None:
        self.descriptions, self.published = descriptions, descriptions[0]

    def next_batch(self, timeout: float) -> Any:
        self.timeouts.append(timeout)
        if not self.comes:
            raise ClosedError(Code.ECLOSED, "all have left")
        came = self.comes.pop(0)
        if isinstance(came, tuple):
            self.asked = came
            raise ChangeError(Code.ECHANGE, "a client asks for a change")
        return came

    def change_get(self) -> Any:
        return self.asked

    def change_reply(self, service: int, code: int, text: str) -> None:
        self.changed.append((service, code))

    def set_state(self, service: int, state: str) -> None:
        self.states.append((service, state))

    def set_room(self, service: int, room: bool) -> None:
        self.rooms.append((service, room))

    def hold_batch(self) -> list[Any]:
        return [SimpleNamespace(row=0, rows=1, client=0)]

    def wants(self, ticket: Any) -> bool:
        return True

    def reply(self, outputs: Any) -> None:
        self.answers.append([np.array(output) for output in outputs])

    def reply_ticket(self, ticket: Any, outputs: Any) -> None:
        self.reply(outputs)

    def fail_batch(self, code: int, text: str) -> None:
        self.answers.append((code, text))

    def queue_rows(self, service: int) -> int:
        return 0

    def crowded(self, service: int) -> tuple[int, int]:
        return 0, 0

    def waiting(self) -> tuple[int, str]:
        return 0, ""

    def set_engine(self, service: int, engine: Any) -> None:
        self.engines.append((service, engine))

    def lost(self) -> tuple[int, str]:
        return 0, ""

    def counters(self) -> dict[str, int]:
        names = ["errors", "cache_lookups", "cache_hits", "cached_requests"]
        names += [f"closed_by_{what}" for what in ("rows", "census", "delay")]
        early = {"rejected": 2, "dropped": 0, "cancelled": 1}
        return dict.fromkeys(names, 0) | {"requests": 6, "rows": 30, "batches": 2} | early


class Model(Backend):
    """Whatever a test puts here."""

    function = staticmethod(lambda x: x)
    loaded: BaseException | None = None

    def load(self) -> None:
        if self.loaded:
            raise self.loaded

    def run(self, inputs: tuple[np.ndarray, ...]) -> Any:
        return self.function(*inputs)


def batch(rows: int = 3, value: float = 1.0, service: int = 0) -> Any:
    """A batch of one request."""
    inputs = (np.full((rows, 2), value, np.float32),)
    return SimpleNamespace(
        rows=rows, requests=1, service=service, inputs=inputs, outputs=(), failure=""
    )


def service_of(name: str, **table: Any) -> Any:
    """Read the table of a service of float32 [2]."""
    known = {"inputs": [{"name": "x", **FLOATS}], "warmup": False, "isolate": False}
    return Config.from_dict({"service": {name: known | table}}).services[0]


def worker_of(
    monkeypatch: Any,
    function: Any,
    *comes: Any,
    names: tuple[str, ...] = ("y",),
    load_error: BaseException | None = None,
    replica: int = 1,
    **table: Any,
) -> tuple[Worker, FakeLib]:
    """Make the worker of one service, whose model is a function."""
    monkeypatch.setattr(Model, "function", staticmethod(function))
    monkeypatch.setattr(Model, "loaded", load_error)
    monkeypatch.setattr(loading.backends, "import_object", lambda *_: Model)
    outputs = [{"name": name, **FLOATS} for name in names]
    service = service_of("s", **{"backend": f"{__name__}:Model", "outputs": outputs} | table)
    lib = FakeLib(*comes)
    return Worker(lib, Assignment((service,), replica, 0)), lib
