"""The errors of mpiserve: one code per cause, shared with C and Fortran."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """The codes of mpiserve.h, without their prefix."""

    OK = 0
    EARG = -1
    ESTATE = -2
    EMPI = -3
    ENOMEM = -4
    ETHREAD = -5
    EVERSION = -6
    ECONFIG = -7
    ENOTFOUND = -8
    ENAME = -9
    EDTYPE = -10
    ESHAPE = -11
    EROWS = -12
    EMODEL = -13
    ETIMEOUT = -14
    ECANCELLED = -15
    EPEER = -16
    ECLOSED = -17
    EFULL = -18
    EDEADLINE = -19
    ECHANGE = -20


class Error(Exception):
    """Any failure that mpiserve reports.

    Attributes:
        code: The reason, as in mpiserve.h.
        text: The details, one line for people.
    """

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(code, text)
        self.code = Code(code) if code in Code._value2member_map_ else code
        self.text = text

    def __str__(self) -> str:
        return self.text or getattr(self.code, "name", str(self.code))


class ArgumentError(Error, ValueError):
    """An argument, a tensor's name, shape or number of rows does not fit."""


class DtypeError(Error, TypeError):
    """A tensor's dtype is not that of the signature."""


class ConfigError(Error):
    """The configuration is wrong, or its partition does not fit the world."""


class NotFoundError(Error, LookupError):
    """The world has no service of this name."""


class ModelError(Error):
    """The model failed to load, or failed on this batch."""


class CausedError(ModelError):
    """The model raised an exception, which is this error's cause."""


class RequestTimeout(Error, TimeoutError):
    """The time-out passed before the result arrived."""


class DeadlineError(RequestTimeout):
    """The request's deadline passed: the request has ended, so do not wait for it again."""


class QueueFullError(Error):
    """The service's queue is full, and its configuration says on_full = "reject"."""


class CancelledError(Error):
    """The request was cancelled."""


class PeerError(Error):
    """Another rank of the session ended with an error."""


class ClosedError(Error):
    """The session is closed."""


class ChangeError(Error):
    """A client asks for a change of the model. A worker receives it; it is not a failure."""


_CLASSES: dict[int, type[Error]] = {
    Code.EARG: ArgumentError,
    Code.ECONFIG: ConfigError,
    Code.ENOTFOUND: NotFoundError,
    Code.ENAME: ArgumentError,
    Code.EDTYPE: DtypeError,
    Code.ESHAPE: ArgumentError,
    Code.EROWS: ArgumentError,
    Code.EMODEL: ModelError,
    Code.ETIMEOUT: RequestTimeout,
    Code.ECANCELLED: CancelledError,
    Code.EPEER: PeerError,
    Code.ECLOSED: ClosedError,
    Code.EFULL: QueueFullError,
    Code.EDEADLINE: DeadlineError,
    Code.ECHANGE: ChangeError,
}


def from_code(code: int, text: str = "") -> Error:
    """Make the error that stands for a code of mpiserve.h."""
    return _CLASSES.get(code, Error)(code, text)
