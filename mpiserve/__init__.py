"""mpiserve: a simulation and the models that it queries, in one MPI world."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import mpi4py

from mpiserve.errors import (
    ArgumentError,
    CancelledError,
    ClosedError,
    Code,
    ConfigError,
    DeadlineError,
    DtypeError,
    Error,
    ModelError,
    NotFoundError,
    PeerError,
    QueueFullError,
    RequestTimeout,
)
from mpiserve.mpi import families as _families

if TYPE_CHECKING:
    from mpiserve._lib.core import Pace, Request, Service
    from mpiserve.backends.base import Backend, Steps
    from mpiserve.config import Config
    from mpiserve.gateway.client import connect
    from mpiserve.observe.capture_data import Capture
    from mpiserve.session import Session, local, open
    from mpiserve.text import decode_text, encode_text

__version__ = "0.5.0"

__all__ = [
    "ArgumentError",
    "Backend",
    "CancelledError",
    "Capture",
    "ClosedError",
    "Code",
    "Config",
    "ConfigError",
    "DeadlineError",
    "DtypeError",
    "Error",
    "ModelError",
    "NotFoundError",
    "Pace",
    "PeerError",
    "QueueFullError",
    "Request",
    "RequestTimeout",
    "Service",
    "Session",
    "Steps",
    "connect",
    "decode_text",
    "encode_text",
    "local",
    "open",
]

# mpi4py requests MULTIPLE by default, and in MPICH a mix with ranks of a lower level corrupts
# messages. A program that imports mpiserve before mpi4py.MPI gets "serialized", unless MPICH is
# set to give MULTIPLE to ranks that request no level.
if "mpi4py.MPI" not in sys.modules:
    _given = os.environ.get("MPIR_CVAR_DEFAULT_THREAD_LEVEL", "").upper()
    mpi4py.rc.thread_level = "multiple" if _given.endswith("MULTIPLE") else "serialized"

_families.install()

# Imported on first use: a session initialises MPI, a configuration needs pydantic.
_LATE = {
    "Backend": "mpiserve.backends.base",
    "Capture": "mpiserve.observe.capture_data",
    "Config": "mpiserve.config",
    "Pace": "mpiserve._lib.core",
    "Request": "mpiserve._lib.core",
    "Service": "mpiserve._lib.core",
    "Session": "mpiserve.session",
    "Steps": "mpiserve.backends.base",
    "connect": "mpiserve.gateway.client",
    "decode_text": "mpiserve.text",
    "encode_text": "mpiserve.text",
    "local": "mpiserve.session",
    "open": "mpiserve.session",
}


if not TYPE_CHECKING:  # __getattr__ would hide wrong names from type checkers

    def __getattr__(name: str) -> Any:
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if _LATE[name] in ("mpiserve.session", "mpiserve._lib.core"):
            _families.require()
        value = getattr(import_module(_LATE[name]), name)
        globals()[name] = value
        return value
