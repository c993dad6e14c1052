"""Types of the Cython module; its docstrings are in _broker.pyx."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.tensor import Tensor

def keep_freed_memory() -> None: ...
def version() -> str: ...
def mpi_build() -> str: ...
def mpi_runtime() -> str: ...

class Description:
    def __init__(
        self,
        *,
        name: str,
        engine: str = "",
        inputs: Sequence[Tensor] = (),
        outputs: Sequence[Tensor] = (),
        max_batch_rows: int = 1,
        max_delay_us: float = 0,
        pool_bytes: int = 0,
        stickiness: float = 0,
        max_queue_rows: int = 0,
        on_full: str = "wait",
        overwrites: bool = False,
        replica: int = 0,
        error_code: int = 0,
        error_text: str = "",
    ) -> None: ...

class Batch:
    service: int
    rows: int
    requests: int
    in_place: bool
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]

class Session:
    role: str
    comm: MPI.Intracomm
    roles: tuple[str, ...]
    def __init__(self, comm: MPI.Comm, role: str) -> None: ...
    @staticmethod
    def open_failed(comm: MPI.Comm, role: str, code: int, text: str) -> None: ...
    def counters(self) -> dict[str, int]: ...
    def fail(self, text: str) -> None: ...
    def close(self) -> None: ...
    def services(self) -> list[Service]: ...
    def service(self, name: str) -> Service: ...
    def publish(self, *services: dict[str, Any]) -> None: ...
    def next_batch(self, timeout: float) -> Batch | None: ...
    def reply(self, outputs: Sequence[np.ndarray]) -> None: ...
    def reply_rows(self, rows: int, outputs: Sequence[np.ndarray]) -> None: ...
    def fail_batch(self, code: int, text: str) -> None: ...
    def serve_echo(self, timeout: float) -> None: ...
    def mpi_take(self) -> None: ...
    def mpi_give(self) -> None: ...
    def peer_error(self) -> tuple[int, int, str]: ...

class Service:
    name: str
    engine: str
    transport: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_rows: int
    replicas: int
    head: int
    def __call__(
        self,
        *arrays: np.ndarray,
        out: np.ndarray | tuple[np.ndarray, ...] | None = None,
        timeout: float | None = None,
        priority: int = 0,
        **named: np.ndarray,
    ) -> Any: ...
    def submit(
        self,
        *arrays: np.ndarray,
        out: np.ndarray | tuple[np.ndarray, ...] | None = None,
        deadline: float | None = None,
        priority: int = 0,
        **named: np.ndarray,
    ) -> Request: ...
    def empty_input(self, rows: int) -> Any: ...
    def empty_output(self, rows: int) -> Any: ...
    def totals(self) -> dict[str, int]: ...

class Request:
    stats: dict[str, int] | None
    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> Any: ...
    def cancel(self) -> None: ...
