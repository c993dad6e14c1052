"""The task `generate`: continuous batching of prompts, and streams of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends.base import Steps
from mpiserve.backends.language import likelihoods
from mpiserve.backends.language.decoding import Decoder, Sampler, TokenSequence
from mpiserve.backends.language.generation_settings import Settings
from mpiserve.backends.language.huggingface import Task
from mpiserve.backends.language.model_limits import vocabulary
from mpiserve.backends.language.self_check import trusted
from mpiserve.backends.language.streams import Row, Streams
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import torch

WHOLE_BATCH = -1  # the key of a batch that runs to its end in one call
STREAM_TIMEOUT = 60.0


class Generator(Task, Steps):
    """Continues the prompts of requests, at most max_batch_rows at a time."""

    def _check(self) -> None:
        super()._check()
        outputs = {tensor.name: tensor for tensor in self.service.outputs}
        first = outputs.get("tokens") or outputs.get("text")
        texts = {*outputs}.difference(likelihoods.OUTPUTS)
        if not first or not texts <= {"tokens", "lengths", "text"}:
            text = (
                "task 'generate' has the outputs 'tokens' or 'text', and if wanted 'lengths', "
                "'logprobs', and 'top_tokens' with 'top_logprobs'"
            )
            raise ModelError(Code.EMODEL, text)
        for text in likelihoods.problems(outputs, vocabulary(self.model)):
            raise ModelError(Code.EMODEL, text)
        self._streams = Streams(self._check_stream(outputs))
        self._outputs = outputs
        self._room = first.shape[1]
        self._settings = Settings(self.service, self.model, draws="temperature" in self._names)
        self._decoder: Decoder
        self._waiting: list[TokenSequence] = []
        self._jobs: dict[int, list[TokenSequence]] = {}
        self._answers: dict[int, Any] = {}

    def _check_stream(self, outputs: dict[str, Any]) -> float:
        """Return the seconds after which a stream that nobody reads is dropped."""
        tensors = [tensor for tensor in self.service.inputs if tensor.name == "stream"]
        self._streaming = bool(tensors)
        texts = {*outputs}.difference(likelihoods.OUTPUTS)
        if tensors and (texts != {"tokens", "lengths"} or tensors[0].shape != (-1, 2)):
            text = "the input 'stream' is of shape [-1, 2]; its outputs are 'tokens' and 'lengths'"
            raise ModelError(Code.EMODEL, text)
        if tensors and self.service.replicas > 1:
            # Requests of one stream may reach different replicas.
            raise ModelError(Code.EMODEL, "the input 'stream' needs replicas = 1")
        timeout = self.service.options.get("stream_timeout_s", STREAM_TIMEOUT)
        if not isinstance(timeout, (int, float)) or timeout <= 0:
            key = f"service.{self.service.name}.options.stream_timeout_s"
            raise ArgumentError(Code.EARG, f"{key}: must be a positive number of seconds")
        return timeout

    def warm(self) -> None:
        """Choose the decoder that continues test sequences correctly."""
        stops, most = self._settings.stops, self.positions
        self._decoder = trusted(self.service, self.model, self.engine, stops, self.ranks, most)
        self._decoder.alternatives = likelihoods.alternatives(self._outputs)

    def __call__(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Generate for the rows of a batch, until all sequences have ended."""
        import torch

        self._begin(WHOLE_BATCH, 0, tuple(tensor.cpu() for tensor in tensors))
        return {name: torch.from_numpy(array) for name, array in self._finish().items()}

    def _finish(self) -> dict[str, np.ndarray]:
        while WHOLE_BATCH not in (answers := self.step()):
            pass
        if isinstance(answers[WHOLE_BATCH], Exception):
            raise answers[WHOLE_BATCH]
        return answers[WHOLE_BATCH]

    # ---- requests one by one

    @property
    def busy(self) -> bool:
        """Whether there are sequences to continue, or answers to return."""
        return bool(self._decoder.sequences or self._waiting or self._answers)

    @property
    def room(self) -> bool:
        """Whether more sequences can begin. Reads of streams must always be accepted."""
        sequences = len(self._decoder.sequences) + len(self._waiting)
        return self._streaming or sequences < self.service.max_batch_rows

    def begin(self, key: int, client: int, inputs: tuple[np.ndarray, ...]) -> None:
        """Accept a request: its rows join the running sequences at the next step."""
        import torch

        arrays = [one.astype("float32") if one.dtype.name == "bfloat16" else one for one in inputs]
        self._begin(key, client, tuple(map(torch.from_numpy, arrays)))

    def step(self) -> dict[int, Any]:
        """Let waiting sequences join, and add a token to each sequence.

        Readers of tokens that are there do not wait for the next ones: then that is all.
        """
        import torch

        if ready := self._read_streams():
            return ready
        try:
            with torch.inference_mode():
                self._advance()
        except BaseException:
            self._forget()
            raise
        self._fail_jobs()
        answers, self._answers = self._answers, {}
        for key, sequences in list(self._jobs.items()):
            if all(sequence.ended for sequence in sequences):
                answers[key] = self._results([_whole(sequence) for sequence in sequences])
                del self._jobs[key]
        return answers | self._read_streams()

    def drop(self, key: int) -> None:
        """Drop a request, and the stream that it reads."""
        self._answers.pop(key, None)
        for sequence in (*self._jobs.pop(key, []), *self._streams.drop(key)):
            sequence.ended = True

    def take_over(self, old: Steps) -> None:
        """Take over streams that have ended but have unread tokens."""
        if isinstance(old, Generator):
            self._streams.take_over(old._streams)

    def __getstate__(self) -> dict[str, Any]:
        """Return what `take_over` reads, for a version in another process."""
        return {"_streams": self._streams}

    def _forget(self) -> None:
        self._decoder.clear()
        self._streams.clear()
        self._waiting, self._jobs, self._answers = [], {}, {}

    def _begin(self, key: int, client: int, tensors: tuple[torch.Tensor, ...]) -> None:
        named = self.named(tensors)
        rows = named["stream"].tolist() if self._streaming else []
        if any(number for number, _ in rows):
            if len(rows) > 1:
                self._check_rows(key)
            sequences = self._streams.begin(key, client, rows, lambda some: self._some(named, some))
        else:
            sequences = self._jobs[key] = self._sequences(named)
        self._waiting += [sequence for sequence in sequences if not sequence.ended]

    def _check_rows(self, key: int) -> None:
        """Refuse to read several streams at once where that cannot work."""
        if key == WHOLE_BATCH:  # its rows may be of several clients
            raise ModelError(Code.EMODEL, "a request with a stream must have one row")
        if self._outputs["lengths"].dtype.startswith("u"):
            raise ModelError(Code.EMODEL, "several streams need a signed dtype of 'lengths'")

    def _some(self, named: dict[str, torch.Tensor], rows: list[int]) -> list[TokenSequence]:
        """Make the sequences of some rows of a request."""
        return self._sequences({name: tensor[rows] for name, tensor in named.items()})

    def _sequences(self, named: dict[str, torch.Tensor]) -> list[TokenSequence]:
        prompts, lengths = named["tokens"].tolist(), named["lengths"].tolist()
        zeros = [0] * len(prompts)
        limits = named["max_new_tokens"].tolist() if "max_new_tokens" in named else zeros
        draws = samplers(named, len(prompts))
        rows = zip(prompts, lengths, limits, draws, strict=True)
        return [
            self._sequence(prompt[:length], int(limit), sampler)
            for prompt, length, limit, sampler in rows
        ]

    def _sequence(self, prompt: list[int], limit: int, sampler: Sampler | None) -> TokenSequence:
        if limit < 0:
            raise ModelError(Code.EMODEL, f"max_new_tokens is {limit}; it must be at least 0")
        most = min(limit, self._room) if limit else self._room
        # The model does not read the last token, so it needs no position.
        if prompt and len(prompt) + most - 1 > self.positions:
            left = self.positions + 1 - len(prompt)
            hint = f"max_new_tokens may be {left} at most" if left > 0 else "shorten the prompt"
            text = (
                f"a prompt of {len(prompt)} tokens and {most} new ones; "
                f"the model has {self.positions} positions: {hint}"
            )
            raise ModelError(Code.EMODEL, text)
        rules = self._settings.rules(prompt, most) if prompt else None
        return TokenSequence(prompt, most, sampler, rules=rules, ended=not prompt)

    def _advance(self) -> None:
        for sequence in [sequence for sequence in self._waiting if sequence.ended]:
            self._waiting.remove(sequence)
        self._decoder.remove_ended()
        old = len(self._decoder.sequences)
        if old:
            self._decoder.step()
        space = self.service.max_batch_rows - old
        new, self._waiting = self._waiting[:space], self._waiting[space:]
        if new:
            self._decoder.join(new)
        self._decoder.remove_ended()

    def _fail_jobs(self) -> None:
        """Answer requests whose sequences failed with the error."""
        for key, sequences in list(self._jobs.items()):
            if errors := [sequence.error for sequence in sequences if sequence.error]:
                self.drop(key)
                self._answers[key] = errors[0]

    def _read_streams(self) -> dict[int, Any]:
        return {
            key: found if isinstance(found, Exception) else self._results(found)
            for key, found in self._streams.answers().items()
        }

    def _results(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Put the tokens of each row into the arrays of the signature."""
        results = {}
        if "tokens" in self._outputs:
            shape = len(rows), self._room
            tokens = np.full(shape, self._settings.pad, self._outputs["tokens"].dtype)
            for array, row in zip(tokens, rows, strict=True):
                array[: len(row.tokens)] = row.tokens
            results["tokens"] = tokens
        if "lengths" in self._outputs:
            counts = [row.length for row in rows]
            results["lengths"] = np.array(counts, self._outputs["lengths"].dtype)
        if self._texts and "text" in self._outputs:
            texts = [row.tokens for row in rows]
            results["text"] = self._texts.write(texts, self._outputs["text"].shape[1])
        noted = [row.likelihoods for row in rows]
        return results | likelihoods.arrays(noted, self._outputs, self._settings.pad)


def _whole(sequence: TokenSequence) -> Row:
    return Row(sequence.tokens, len(sequence.tokens), sequence.likelihoods)


def samplers(named: dict[str, torch.Tensor], rows: int) -> list[Sampler | None]:
    """Make a sampler for each row that has a temperature; None takes the likeliest token."""

    def at(name: str, row: int) -> Any:
        return named[name][row].item() if name in named else 0

    return [
        Sampler(at("temperature", row), at("top_k", row), at("top_p", row), at("seed", row))
        if at("temperature", row) > 0
        else None
        for row in range(rows)
    ]
