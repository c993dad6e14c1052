"""The task `generate`: requests whose sequences join and leave between steps, and streams."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends.base import Steps
from mpiserve.backends.language.decoding import Line, Sampler, Sequences
from mpiserve.backends.language.generation_settings import Settings
from mpiserve.backends.language.huggingface import Task
from mpiserve.backends.language.self_check import trusted
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import torch

OPENS, READS, ENDS = range(3)  # what a request does with its stream
WHOLE_BATCH = -1  # the key of one that is run at once
STREAM_TIMEOUT = 60.0


@dataclass(eq=False)
class Stream:
    """A sequence whose client gets the tokens as they come, by a request for each time."""

    line: Line
    since: float  # when it was read last
    reader: int | None = None  # the request that waits for what comes next
    read: int = 0  # tokens

    @property
    def ready(self) -> bool:
        """Whether there is something to tell."""
        return self.line.ended or len(self.line.tokens) > self.read


class Generator(Task, Steps):
    """Continues the prompts of each request; as many rows at a time as a batch may have."""

    def _check(self) -> None:
        super()._check()
        outputs = {tensor.name: tensor for tensor in self.service.outputs}
        first = outputs.get("tokens") or outputs.get("text")
        if not first or not set(outputs) <= {"tokens", "lengths", "text"}:
            text = "task 'generate' has the outputs 'tokens' or 'text', and 'lengths' if wanted"
            raise ModelError(Code.EMODEL, text)
        self._check_stream(outputs)
        self._outputs = outputs
        self._room = first.shape[1]
        self._settings = Settings(self.service, self.model, draws="temperature" in self._names)
        self._running: Sequences
        self._waiting: list[Line] = []
        self._jobs: dict[int, list[Line]] = {}
        self._streams: dict[tuple[int, int], Stream] = {}
        self._said: dict[int, Any] = {}

    def _check_stream(self, outputs: dict[str, Any]) -> None:
        tensors = [tensor for tensor in self.service.inputs if tensor.name == "stream"]
        self._streaming = bool(tensors)
        if tensors and ({*outputs} != {"tokens", "lengths"} or tensors[0].shape != (-1, 2)):
            text = "the input 'stream' is of shape [-1, 2]; its outputs are 'tokens' and 'lengths'"
            raise ModelError(Code.EMODEL, text)
        if tensors and self.service.replicas > 1:
            # The requests of one stream may go to different replicas.
            raise ModelError(Code.EMODEL, "the input 'stream' needs replicas = 1")
        timeout = self.service.options.get("stream_timeout_s", STREAM_TIMEOUT)
        if not isinstance(timeout, (int, float)) or timeout <= 0:
            key = f"service.{self.service.name}.options.stream_timeout_s"
            raise ArgumentError(Code.EARG, f"{key}: must be a positive number of seconds")
        self._stream_timeout = timeout

    def warm(self) -> None:
        """Find out how sequences are to be continued, by continuing some."""
        stops, most = self._settings.stops, self.positions
        self._running = trusted(self.service, self.model, self.engine, stops, self.ranks, most)

    def __call__(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Generate for the rows of a batch, until all have ended."""
        import torch

        self._begin(WHOLE_BATCH, 0, tuple(tensor.cpu() for tensor in tensors))
        return {name: torch.from_numpy(array) for name, array in self._finish().items()}

    def _finish(self) -> dict[str, np.ndarray]:
        while WHOLE_BATCH not in (said := self.step()):
            pass
        if isinstance(said[WHOLE_BATCH], Exception):
            raise said[WHOLE_BATCH]
        return said[WHOLE_BATCH]

    # ---- requests one by one

    @property
    def busy(self) -> bool:
        """Whether there are sequences to go on with."""
        return bool(self._running.lines or self._waiting or self._said)

    @property
    def room(self) -> bool:
        """Whether more sequences can begin; those who read streams must be heard always."""
        lines = len(self._running.lines) + len(self._waiting)
        return self._streaming or lines < self.service.max_batch_rows

    def begin(self, key: int, client: int, inputs: tuple[np.ndarray, ...]) -> None:
        """Take a request: its rows join those that are running."""
        import torch

        arrays = [one.astype("float32") if one.dtype.name == "bfloat16" else one for one in inputs]
        self._begin(key, client, tuple(map(torch.from_numpy, arrays)))

    def step(self) -> dict[int, Any]:
        """Let waiting sequences join, and add a token to each."""
        import torch

        try:
            with torch.inference_mode():
                self._advance()
        except BaseException:
            self._forget()
            raise
        self._fail_jobs()
        said, self._said = self._said, {}
        for key, lines in list(self._jobs.items()):
            if all(line.ended for line in lines):
                said[key] = self._results([(line.tokens, 0) for line in lines])
                del self._jobs[key]
        return said | self._read_streams()

    def drop(self, key: int) -> None:
        """Forget a request; a stream with the one that reads it."""
        lines = self._jobs.pop(key, [])
        self._said.pop(key, None)
        for name, stream in list(self._streams.items()):
            if stream.reader == key:
                lines = [*lines, self._streams.pop(name).line]
        for line in lines:
            line.ended = True

    def take_over(self, old: Steps) -> None:
        """Take the streams, which have ended but were not read to their end."""
        if not isinstance(old, Generator):
            return
        for name, stream in old._streams.items():
            self._streams[name] = replace(stream, since=time.monotonic())

    def _forget(self) -> None:
        self._running.clear()
        self._waiting, self._jobs, self._streams, self._said = [], {}, {}, {}

    def _begin(self, key: int, client: int, tensors: tuple[torch.Tensor, ...]) -> None:
        named = self.named(tensors)
        number, what = named["stream"][0].tolist() if self._streaming else (0, OPENS)
        if self._streaming and len(named["stream"]) > 1 and bool(named["stream"][:, 0].any()):
            raise ModelError(Code.EMODEL, "a request with a stream has one row")
        if number and what != OPENS:
            self._go_on(key, (client, number), what)
            return
        lines = self._lines(named)
        if number:
            self._open(key, (client, number), lines[0])
        else:
            self._jobs[key] = lines
        self._waiting += [line for line in lines if not line.ended]

    def _lines(self, named: dict[str, torch.Tensor]) -> list[Line]:
        prompts, lengths = named["tokens"].tolist(), named["lengths"].tolist()
        zeros = [0] * len(prompts)
        limits = named["max_new_tokens"].tolist() if "max_new_tokens" in named else zeros
        draws = samplers(named, len(prompts))
        rows = zip(prompts, lengths, limits, draws, strict=True)
        return [
            self._line(prompt[:length], int(limit), draw) for prompt, length, limit, draw in rows
        ]

    def _line(self, prompt: list[int], limit: int, draw: Sampler | None) -> Line:
        if limit < 0:
            raise ModelError(Code.EMODEL, f"max_new_tokens is {limit}; it is at least 0")
        most = min(limit, self._room) if limit else self._room
        # The last token is not read any more.
        if prompt and len(prompt) + most - 1 > self.positions:
            left = self.positions + 1 - len(prompt)
            hint = f"max_new_tokens may be {left} at most" if left > 0 else "shorten the prompt"
            text = (
                f"a prompt of {len(prompt)} tokens and {most} new ones; "
                f"the model has {self.positions} positions: {hint}"
            )
            raise ModelError(Code.EMODEL, text)
        rules = self._settings.rules(prompt, most) if prompt else None
        return Line(prompt, most, draw, rules=rules, ended=not prompt)

    def _advance(self) -> None:
        for line in [line for line in self._waiting if line.ended]:
            self._waiting.remove(line)
        self._running.sweep()
        old = len(self._running.lines)
        if old:
            self._running.step()
        space = self.service.max_batch_rows - old
        new, self._waiting = self._waiting[:space], self._waiting[space:]
        if new:
            self._running.join(new)
        self._running.sweep()

    def _fail_jobs(self) -> None:
        """Answer those whose sequences failed with the reason."""
        for key, lines in list(self._jobs.items()):
            if errors := [line.error for line in lines if line.error]:
                self.drop(key)
                self._said[key] = errors[0]
        for stream in list(self._streams.values()):
            if stream.line.error and stream.reader is not None:
                error, key = stream.line.error, stream.reader
                self.drop(key)
                self._said[key] = error

    def _results(self, parts: Sequence[tuple[list[int], int]]) -> dict[str, np.ndarray]:
        """Put the tokens of each row, from a place on, into the arrays of the signature."""
        lines, results = [line[begin:] for line, begin in parts], {}
        if "tokens" in self._outputs:
            shape = len(lines), self._room
            tokens = np.full(shape, self._settings.pad, self._outputs["tokens"].dtype)
            for row, line in zip(tokens, lines, strict=True):
                row[: len(line)] = line
            results["tokens"] = tokens
        if "lengths" in self._outputs:
            counts = [len(line) for line in lines]
            results["lengths"] = np.array(counts, self._outputs["lengths"].dtype)
        if self._texts and "text" in self._outputs:
            results["text"] = self._texts.write(lines, self._outputs["text"].shape[1])
        return results

    # ---- streams

    def _open(self, key: int, name: tuple[int, int], line: Line) -> None:
        if name in self._streams:
            raise ModelError(Code.EMODEL, f"stream {name[1]} of rank {name[0]} is open already")
        self._streams[name] = Stream(line, time.monotonic(), key)

    def _go_on(self, key: int, name: tuple[int, int], what: int) -> None:
        stream = self._streams.get(name)
        if what == ENDS:
            if stream:
                self.drop_stream(name)
            self._said[key] = self._results([([], 0)])
        elif what != READS:
            raise ModelError(Code.EMODEL, "a stream is opened, read or ended: 0, 1 or 2")
        elif stream is None:
            seconds = f"{self._stream_timeout:g} s"
            text = (
                f"rank {name[0]} has no stream {name[1]}: it ended, or was not read for {seconds}"
            )
            raise ModelError(Code.EMODEL, text)
        elif stream.reader is not None:
            raise ModelError(Code.EMODEL, f"stream {name[1]} of rank {name[0]} is being read")
        else:
            stream.reader = key

    def _read_streams(self) -> dict[int, dict[str, np.ndarray]]:
        """Answer those who wait for tokens; drop what nobody reads."""
        now, said = time.monotonic(), {}
        for name, stream in list(self._streams.items()):
            if stream.reader is None:
                if now - stream.since > self._stream_timeout:
                    self.drop_stream(name)
            elif stream.ready:
                said[stream.reader] = self._results([(stream.line.tokens, stream.read)])
                over = stream.read == len(stream.line.tokens)
                stream.reader, stream.since = None, now
                stream.read = len(stream.line.tokens)
                if over:
                    del self._streams[name]
        return said

    def drop_stream(self, name: tuple[int, int]) -> None:
        """End a stream, and the sequence with it."""
        self._streams.pop(name).line.ended = True


def samplers(named: dict[str, torch.Tensor], rows: int) -> list[Sampler | None]:
    """Make a sampler for each row with a temperature; the others take the likeliest token."""

    def at(name: str, row: int) -> Any:
        return named[name][row].item() if name in named else 0

    return [
        Sampler(at("temperature", row), at("top_k", row), at("top_p", row), at("seed", row))
        if at("temperature", row) > 0
        else None
        for row in range(rows)
    ]
