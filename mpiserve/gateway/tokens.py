"""The tokens of clients at the gateway's child: who it is, what it may use, and how often.

The child has no list of tokens, but of their digests, and logs none. Those of requests pass through
its memory.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

from mpiserve.config.gateway_files import JOB, TokenEntry
from mpiserve.gateway.errors import Refusal

SCHEME = b"Bearer "


def told(job: str, others: Iterable[TokenEntry]) -> list[list[Any]]:
    """Write the tokens for the child: that of the endpoint file, and those of other clients."""
    entries = [TokenEntry(JOB, job, change=True), *others]
    return [[_digest(entry.token.encode()), *entry._replace(token="")] for entry in entries]


def _digest(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


class Holder:
    """Who has a certain token.

    Args:
        entry: What is known of it.

    Attributes:
        name: What logs call it.
    """

    def __init__(self, entry: TokenEntry) -> None:
        self.name = entry.name
        self._entry = entry
        self._left, self._since = float(entry.burst), time.monotonic()

    def take(self) -> None:
        """Count a request.

        Raises:
            Refusal: If there are more than may be; the client is told when to come again.
        """
        rate = self._entry.rate
        if not rate:
            return
        now = time.monotonic()
        self._left = min(self._entry.burst, self._left + (now - self._since) * rate)
        self._since = now
        if self._left < 1:
            text = f"more than {rate:g} requests a second, which the token '{self.name}' may have"
            raise Refusal(429, text, retry_s=max(1, math.ceil((1 - self._left) / rate)))
        self._left -= 1

    def may_use(self, service: str) -> bool:
        """Say whether it may use a service."""
        return self._entry.services is None or service in self._entry.services

    def check(self, service: str) -> None:
        """Refuse a service that it may not use, whether there is one or not.

        Raises:
            Refusal: If it may not.
        """
        if not self.may_use(service):
            names = ", ".join(self._entry.services or ())
            raise Refusal(403, f"the token '{self.name}' is for {names}, not for others")

    def check_change(self) -> None:
        """Refuse to load or unload a model, unless it may.

        Raises:
            Refusal: If it may not.
        """
        if not self._entry.change:
            text = (
                f"the token '{self.name}' may not load or unload models: change = true is missing"
            )
            raise Refusal(403, text)

    def check_all(self) -> None:
        """Refuse what tells of all services, unless it may use all.

        Raises:
            Refusal: If it may not.
        """
        if self._entry.services is not None:
            text = f"the token '{self.name}' is for some services, and this tells of all"
            raise Refusal(403, text)


class Tokens:
    """Finds who has a token.

    Args:
        entries: What `told` has written.
    """

    def __init__(self, entries: Sequence[Sequence[Any]]) -> None:
        self._holders = {digest: Holder(TokenEntry(*entry)) for digest, *entry in entries}

    def find(self, header: bytes) -> Holder | None:
        """Find who sends this header; None if nobody has its token.

        The time tells nothing of a token: it depends on digests, which nobody can choose.
        """
        if not header.startswith(SCHEME):
            return None
        return self._holders.get(_digest(header[len(SCHEME) :]))
