"""Bodies of requests and answers in JSON, as every protocol here has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SHOWN = 400  # bytes of a body that is no JSON, in an error


class WireError(ValueError):
    """Bytes that the protocol does not allow."""


def read_table(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WireError: If it is none.
    """
    try:
        table = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {error}") from None
    if not isinstance(table, dict):
        raise WireError("JSON that is no object")
    return table


def error_text(body: bytes) -> str:
    """Return what a server says of an error: the text in its JSON, or the body."""
    try:
        table = read_table(body)
        said = table.get("error", table.get("detail", table.get("message")))
        if isinstance(said, Mapping):
            said = said.get("message")
        if said:
            return str(said)
    except WireError:
        pass
    return body[:SHOWN].decode(errors="replace").strip()
