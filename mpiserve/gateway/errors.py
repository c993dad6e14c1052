"""Errors of the job as the protocol's statuses, and back."""

from __future__ import annotations

import logging

from mpiserve.errors import Code, Error, from_code
from mpiserve.wire.json_body import WireError

logger = logging.getLogger("mpiserve")

CODE = "mpiserve-code"  # the header with the name of the code
RETRY = "retry-after"  # that with the seconds until the next try
BUSY_S = 1  # of who is told that too many wait
# Triton's statuses; 429 and 504 are those of HTTP, which clients know.
STATUSES = {
    Code.EARG: 400,
    Code.ENAME: 400,
    Code.EDTYPE: 400,
    Code.ESHAPE: 400,
    Code.EROWS: 400,
    Code.ECONFIG: 400,
    Code.ENOTFOUND: 404,
    Code.ESTATE: 409,
    Code.ECANCELLED: 499,
    Code.EMODEL: 500,
    Code.EFULL: 503,
    Code.EPEER: 503,
    Code.ECLOSED: 503,
    Code.ETIMEOUT: 504,
    Code.EDEADLINE: 504,
}

# What clients of `connect` see, where the gateway names no code of the job.
CODES = {
    400: Code.EARG,
    401: Code.EARG,
    403: Code.EARG,
    404: Code.ENOTFOUND,
    413: Code.EROWS,
    429: Code.EFULL,
    503: Code.EPEER,
}


class Refusal(Exception):
    """A request that ends with a status.

    Args:
        status: The status of HTTP.
        text: What the client is told.
        code: The name of the job's code; "" for none.
        retry_s: Seconds after which it may come again; 0 to say nothing of that.
    """

    def __init__(self, status: int, text: str, code: str = "", retry_s: int = 0) -> None:
        super().__init__(text)
        self.status, self.text, self.code = status, text, code
        self.retry_s = retry_s or BUSY_S * (status == 503)


def refusal_of(error: Exception, what: str) -> Refusal:
    """Say what the client is told of an error; one that nobody expects is logged.

    Args:
        error: The error.
        what: The request, for the log.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, WireError):
        return Refusal(400, str(error), Code.EARG.name)
    if isinstance(error, Error):
        code = Code(error.code)
        return Refusal(STATUSES.get(code, 500), str(error), code.name)
    logger.error("the gateway failed on a request for %s", what, exc_info=error)
    return Refusal(500, "an internal error, which the job's log shows")


def error_of(status: int, name: str | None, text: str) -> Error:
    """Make the error that a gateway has answered with."""
    if name and name in Code.__members__:
        return from_code(Code[name], text)
    return from_code(CODES.get(status, Code.EMODEL), f"status {status}: {text}")
