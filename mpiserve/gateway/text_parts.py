"""Text of tokens that come one by one, and the texts at which it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

LONGEST_CHARACTER = 8  # tokens that may be one character; more make text, whatever they are
BROKEN = "\ufffd"  # what a part of a character is decoded to


class TextParts:
    """Makes the text of tokens, in parts.

    What may be the beginning of a character, or of a text that ends all, waits for more tokens.

    Args:
        decode: Makes the text of tokens.
        stops: Texts that end the text, and are not part of it.

    Attributes:
        length: How many characters have come, whether they are certain to stay or not.
        stopped: Whether one of the stops has come.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = stops
        self._tokens: list[int] = []
        self._before, self._shown = 0, 0  # the last part is of the tokens between these
        self._held = ""
        self.length = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Add a token, and return the text that is certain now."""
        self._tokens.append(token)
        text = self._new()
        if text.endswith(BROKEN) and len(self._tokens) - self._shown < LONGEST_CHARACTER:
            return ""
        self._before, self._shown = self._shown, len(self._tokens)
        self.length += len(text)
        return self._cut(text)

    def end(self) -> str:
        """Return the text that waits for more tokens, when none come."""
        if self.stopped:
            return ""
        text = self._cut(self._new()) if self._shown < len(self._tokens) else ""
        return text if self.stopped else text + self._held

    def _new(self) -> str:
        """The text of the new tokens; those before say whether it begins with a space."""
        known = self._decode(self._tokens[self._before : self._shown])
        return self._decode(self._tokens[self._before :])[len(known) :]

    def _cut(self, text: str) -> str:
        """Append text to what is held, and return what no stop can begin in."""
        held = self._held + text
        ends = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return held[: min(ends)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
