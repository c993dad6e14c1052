"""Streams of tokens: sequences that clients read with one request after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mpiserve.backends.language.decoding import TokenSequence
from mpiserve.backends.language.likelihoods import Likelihood
from mpiserve.errors import Code, ModelError
from mpiserve.failure import describe

OPENS, READS, ENDS = range(3)  # what a row does with its stream
# What stands in `lengths` of a request that reads several streams, where there are no tokens.
ENDED, NOTHING_NEW, READ_ALONE = 0, -1, -2

Name = tuple[int, int]  # the client, and its number for the stream


@dataclass(eq=False)
class Stream:
    """A sequence whose client fetches new tokens with one request after another."""

    sequence: TokenSequence
    since: float  # time of the last read
    reader: int | None = None  # the request that waits for more tokens
    read: int = 0  # tokens that the client has

    @property
    def ready(self) -> bool:
        """Whether a reader can be answered."""
        return self.sequence.ended or len(self.sequence.tokens) > self.read


class Row(NamedTuple):
    """The answer to a row: its new tokens, and their number or one of the codes above.

    `likelihoods` are those of the tokens, where the service tells them.
    """

    tokens: list[int]
    length: int
    likelihoods: Sequence[Likelihood] = ()


class Streams:
    """The open streams of a service, and the requests that wait for their tokens.

    A request of one row is answered when its stream has new tokens. A request of several rows,
    each with a stream of its own, is answered when one of them has: so all tokens of a step go
    to a client that reads many streams in one answer.

    Args:
        timeout: Seconds after which a stream that nobody reads is dropped.

    Attributes:
        open: By the client and its number.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.open: dict[Name, Stream] = {}
        self._requests: dict[int, list[tuple[Name, int]]] = {}

    def begin(
        self,
        key: int,
        client: int,
        rows: Sequence[Sequence[int]],
        start: Callable[[list[int]], list[TokenSequence]],
    ) -> list[TokenSequence]:
        """Accept a request.

        Args:
            key: Of the request.
            client: Who asks.
            rows: For each row the number of its stream, and what it does.
            start: Makes the sequences of some rows.

        Returns:
            The sequences that begin.

        Raises:
            ModelError: If a row cannot do that; then no row has done anything.
        """
        wanted = [((client, number), what) for number, what in rows]
        self._check(wanted)
        opens = [i for i, (_, what) in enumerate(wanted) if what == OPENS]
        sequences, now = start(opens) if opens else [], time.monotonic()
        for i, sequence in zip(opens, sequences, strict=True):
            self.open[wanted[i][0]] = Stream(sequence, now)
        for name, what in wanted:
            if what == ENDS:
                self.end(name)
            elif name in self.open:
                self.open[name].reader = key
        self._requests[key] = wanted
        return sequences

    def drop(self, key: int) -> list[TokenSequence]:
        """Forget a request, and the streams that it reads; return their sequences."""
        self._requests.pop(key, None)
        names = [name for name, stream in self.open.items() if stream.reader == key]
        return [self.open.pop(name).sequence for name in names]

    def end(self, name: Name) -> None:
        """End a stream, if it is open, and its sequence with it."""
        if stream := self.open.pop(name, None):
            stream.sequence.ended = True

    def answers(self) -> dict[int, list[Row] | Exception]:
        """Answer requests that have new tokens; drop streams that nobody reads."""
        found: dict[int, list[Row] | Exception] = {}
        for key, wanted in list(self._requests.items()):
            streams = [self.open.get(name) for name, _ in wanted]
            if any(stream is None or stream.ready for stream in streams):
                del self._requests[key]
                found[key] = self._answer(wanted)
        now = time.monotonic()
        for name, stream in list(self.open.items()):
            if stream.reader is None and now - stream.since > self._timeout:
                self.end(name)
        return found

    def clear(self) -> None:
        """Forget everything."""
        self.open, self._requests = {}, {}

    def take_over(self, old: Streams) -> None:
        """Take over the streams of another version, which have ended but have unread tokens."""
        for name, stream in old.open.items():
            self.open[name] = replace(stream, since=time.monotonic())

    def __getstate__(self) -> dict[str, Any]:
        """Return what `take_over` reads, for a version in another process."""
        return {"open": {name: _kept(stream) for name, stream in self.open.items()}}

    def _check(self, wanted: Sequence[tuple[Name, int]]) -> None:
        names = [name for name, _ in wanted]
        if len(wanted) > 1 and (len({*names}) < len(names) or not all(n for _, n in names)):
            text = "each row of a request with streams has a stream of its own, from 1 on"
            raise ModelError(Code.EMODEL, text)
        for name, what in wanted:
            stream = self.open.get(name)
            if what not in (OPENS, READS, ENDS):
                text = "the second value of 'stream' must be 0 (open), 1 (read) or 2 (end)"
                raise ModelError(Code.EMODEL, f"{text}, got {what}")
            if what == OPENS and stream is not None:
                raise ModelError(Code.EMODEL, f"{_said(name)} is open already")
            if what == READS and stream is not None and stream.reader is not None:
                raise ModelError(Code.EMODEL, f"{_said(name)} is being read")
            if what == READS and stream is None and len(wanted) == 1:
                raise ModelError(Code.EMODEL, self._missing(name))

    def _missing(self, name: Name) -> str:
        seconds = f"{self._timeout:g} s"
        text = f"rank {name[0]} has no stream {name[1]}: it ended, was not read for {seconds}"
        return f"{text}, or the model was started again"

    def _answer(self, wanted: Sequence[tuple[Name, int]]) -> list[Row] | Exception:
        if len(wanted) > 1:
            return [self._row(name, what) for name, what in wanted]
        ((name, what),) = wanted
        stream = self.open.get(name)
        if stream is not None and stream.sequence.error:
            del self.open[name]
            return stream.sequence.error
        # A stream that another request has ended meanwhile ends for its reader, too.
        return [self._row(name, what if stream else ENDS)]

    def _row(self, name: Name, what: int) -> Row:
        stream = self.open.get(name)
        if stream is None:
            return Row([], ENDED if what == ENDS else READ_ALONE)
        stream.reader, stream.since = None, time.monotonic()
        if stream.sequence.error:
            return Row([], READ_ALONE)
        if not stream.ready:
            return Row([], NOTHING_NEW)
        new = stream.sequence.tokens[stream.read :]
        likelihoods = stream.sequence.likelihoods[stream.read :]
        stream.read += len(new)
        if not new:
            del self.open[name]
        return Row(new, len(new), likelihoods)


def _said(name: Name) -> str:
    return f"stream {name[1]} of rank {name[0]}"


def _kept(stream: Stream) -> Stream:
    """Copy what is left of a stream whose sequence has ended."""
    error = stream.sequence.error and ModelError(Code.EMODEL, describe(stream.sequence.error))
    old = stream.sequence
    likelihoods = old.likelihoods
    left = TokenSequence([], 0, None, old.tokens, True, error=error, likelihoods=likelihoods)
    return replace(stream, sequence=left)
