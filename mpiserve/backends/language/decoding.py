"""Generate tokens for sequences that join and leave between steps."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mpiserve.backends.language.caches import change, join, new_cache, pushed
from mpiserve.backends.language.likelihoods import Likelihood
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    import torch

    from mpiserve.backends.language.generation_settings import Rules

CACHE_NAMES = ("cache", "past_key_values", "cache_params")  # the first is that of transformers 5.24


@dataclass(eq=False)
class TokenSequence:
    """A prompt and the tokens that continue it."""

    prompt: list[int]
    limit: int  # of tokens
    sampler: Sampler | None = None  # None takes the likeliest token
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    rules: Rules | None = None  # from generation_config.json
    error: Exception | None = None  # why the sequence failed, if it did
    likelihoods: list[Likelihood] = field(default_factory=list)  # of each token, if wanted

    @property
    def context(self) -> list[int]:
        """The tokens before the next one."""
        return self.prompt + self.tokens

    def fail(self, error: Exception) -> None:
        """End the sequence with an error."""
        self.error, self.ended = error, True

    def choose(self, logits: torch.Tensor) -> int:
        """Choose the next token."""
        if self.rules:
            logits = self.rules.scores(self.context, logits)
        return int(self.sampler(logits) if self.sampler else logits.argmax())

    def add(self, token: int, stops: frozenset[int]) -> None:
        """Append the next token, and end the sequence if it is complete."""
        self.tokens.append(token)
        self.ended = token in stops or len(self.tokens) >= self.limit
        if self.rules and not self.ended:
            self.ended = self.rules.end(self.context)


class Decoder(ABC):
    """Adds one token to each of its sequences in every step.

    Args:
        model: The model as it was read, with its configuration.
        engine: The callable that runs the model.
        stops: The tokens that end a sequence.
        ranks: The number of ranks that run the model together.

    Attributes:
        sequences: Those that are running.
        alternatives: How many of the likeliest tokens are noted beside each token, with its own
            likelihood; None to note nothing.
    """

    alternatives: int | None = None

    def __init__(self, model: Any, engine: Any, stops: frozenset[int], ranks: int) -> None:
        self.sequences: list[TokenSequence] = []
        self._model = model
        self._engine = engine
        self._stops = stops
        self._ranks = ranks
        self._device = next(model.parameters()).device
        self._known = inspect.signature(model.forward).parameters

    @abstractmethod
    def read(self, sequences: Sequence[TokenSequence]) -> None:
        """Run the model on the contexts of new sequences, and add a token to each, or raise."""

    @abstractmethod
    def advance(self) -> None:
        """Add a token to each sequence. After an exception the sequences must be read again."""

    @abstractmethod
    def remove_ended(self) -> None:
        """Remove the sequences that have ended, which makes the others faster."""

    @abstractmethod
    def clear(self) -> None:
        """Remove all sequences."""

    def join(self, sequences: Sequence[TokenSequence]) -> None:
        """Read new sequences, which are not empty.

        If that fails, halves are tried until only the sequences that cause the error fail.

        Raises:
            Exception: If several ranks run the model, because all of them must do the same calls.
        """
        sequences = [sequence for sequence in sequences if not sequence.ended]
        if not sequences:
            return
        try:
            self.read(sequences)
        except Exception as error:
            if self._ranks > 1:
                raise
            if len(sequences) == 1:
                sequences[0].fail(error)
                return
            half = len(sequences) // 2
            self.join(sequences[:half])
            self.join(sequences[half:])

    def step(self) -> None:
        """Add a token to each sequence.

        If that fails, all are read again, so that only those that cause the error fail.

        Raises:
            Exception: If several ranks run the model.
        """
        try:
            self.advance()
        except Exception:
            if self._ranks > 1:
                raise
            sequences = self.sequences
            self.clear()
            self.join(sequences)

    def _call(self, inputs: dict[str, Any]) -> Any:
        # Without this, the model computes logits for the whole prompt; only the last are used.
        last_only = {"logits_to_keep": 1} if "logits_to_keep" in self._known else {}
        return self._engine(**last_only | inputs)

    def _choose(self, sequences: Sequence[TokenSequence], logits: torch.Tensor) -> None:
        """Add to each sequence the token that follows the last column of the logits."""
        import torch

        logits = logits[:, -1].float()
        chosen = [
            self._chosen(sequence, row) for sequence, row in zip(sequences, logits, strict=True)
        ]
        if self._ranks > 1:
            import torch.distributed as dist

            # Ranks that choose different tokens would wait for each other for ever.
            agreed = torch.tensor(chosen, device=self._device)
            dist.broadcast(agreed, 0)
            chosen = agreed.tolist()
        likelihoods = self._likelihoods(logits, chosen)
        for sequence, token, noted in zip(sequences, chosen, likelihoods, strict=True):
            if sequence.error is None:
                sequence.likelihoods += noted  # first: a rule that fails leaves the token there
                sequence.add(token, self._stops)

    def _likelihoods(self, logits: torch.Tensor, chosen: list[int]) -> list[list[Likelihood]]:
        """Return what is to be noted of the chosen tokens: one entry each, or none."""
        import torch

        if self.alternatives is None:
            return [[] for _ in chosen]
        logarithms = logits.log_softmax(1)
        own = logarithms.gather(1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0]
        values, tokens = logarithms.topk(self.alternatives)
        rows = zip(own.tolist(), tokens.tolist(), values.tolist(), strict=True)
        return [[Likelihood(*row)] for row in rows]

    def _chosen(self, sequence: TokenSequence, logits: torch.Tensor) -> int:
        try:
            if bool(logits.isnan().any()):
                raise ModelError(Code.EMODEL, "the model's logits are not numbers (NaN)")
            return sequence.choose(logits)
        except Exception as error:
            if self._ranks > 1:
                raise
            sequence.fail(error)
            return 0


class BatchDecoder(Decoder):
    """Runs all sequences in one batch.

    Prompts are padded on the left, so that all sequences continue in the same column of the
    cache; a mask hides the padding. Layers of the cache that keep only a window cannot be
    joined, so layers that keep all columns replace them.

    Raises:
        ModelError: If the model's cache is of another kind.
    """

    def __init__(self, model: Any, engine: Any, stops: frozenset[int], ranks: int) -> None:
        super().__init__(model, engine, stops, ranks)
        names = [name for name in CACHE_NAMES if name in self._known]
        if not names:
            raise ModelError(Code.EMODEL, "its forward() takes no cache that can be joined")
        self._cache_name = names[0]
        self._cache: Any = None
        self._mask: torch.Tensor  # [sequences, columns of the cache]

    def read(self, sequences: Sequence[TokenSequence]) -> None:
        """Read new sequences together, then merge them into the batch."""
        import torch

        contexts = [sequence.context for sequence in sequences]
        width = max(map(len, contexts))
        pads = [width - len(context) for context in contexts]
        padded = [[0] * pad + context for pad, context in zip(pads, contexts, strict=True)]
        ids = torch.tensor(padded, device=self._device)
        columns = torch.arange(width, device=self._device)[None, :]
        positions = columns - torch.tensor(pads, device=self._device)[:, None]
        mask, cache = (positions >= 0).long(), new_cache(self._model.config)
        logits = self._forward(ids, mask, positions.clamp(min=0), cache)
        self._merge(sequences, mask, cache)
        try:
            self._choose(sequences, logits)
        except BaseException:  # the caller reads the new ones again, or fails them
            stay = [i for i, old in enumerate(self.sequences) if old not in sequences]
            self.sequences = [self.sequences[i] for i in stay]
            self._keep(stay)
            raise

    def advance(self) -> None:
        """Call the model once for all sequences."""
        import torch

        last = [sequence.context[-1] for sequence in self.sequences]
        ids = torch.tensor(last, device=self._device)[:, None]
        positions = self._mask.sum(1, keepdim=True)
        mask = torch.cat([self._mask, self._mask.new_ones(len(last), 1)], 1)
        logits = self._forward(ids, mask, positions, self._cache)
        self._mask = mask
        self._choose(self.sequences, logits)

    def remove_ended(self) -> None:
        """Remove the rows of ended sequences from the cache, and columns that none uses."""
        stay = [i for i, sequence in enumerate(self.sequences) if not sequence.ended]
        if len(stay) == len(self.sequences):
            return
        self.sequences = [self.sequences[i] for i in stay]
        self._keep(stay)

    def _keep(self, stay: list[int]) -> None:
        """Keep these rows of the cache, and the columns that they use."""
        if not stay:
            self._cache = None
            return
        import torch

        rows = torch.tensor(stay, device=self._device)
        first = int(self._mask[rows].argmax(1).min())
        self._mask = self._mask[rows, first:]
        for layer in self._cache.layers:
            change(layer, lambda states: states[rows, :, first:], lambda states: states[rows])

    def clear(self) -> None:
        """Remove all sequences and the cache."""
        self.sequences, self._cache = [], None

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
        if "position_ids" in self._known:
            inputs["position_ids"] = positions
        logits: torch.Tensor = self._call(inputs | {self._cache_name: cache}).logits
        return logits

    def _merge(self, sequences: Sequence[TokenSequence], mask: torch.Tensor, cache: Any) -> None:
        if not self.sequences:
            self.sequences, self._mask, self._cache = list(sequences), mask, cache
            return
        try:
            self._concatenate(mask, cache)
        except Exception:
            # Some layers are joined and some are not: read the old sequences again.
            old = self.sequences
            self.clear()
            self.join(old)
            raise
        self.sequences = [*self.sequences, *sequences]

    def _concatenate(self, mask: torch.Tensor, cache: Any) -> None:
        import torch

        width = max(mask.shape[1], self._mask.shape[1])
        joined = torch.cat([pushed(self._mask, 1, width), pushed(mask, 1, width)])
        for mine, new in zip(self._cache.layers, cache.layers, strict=True):
            join(mine, new, width)
        self._mask = joined


class SingleDecoder(Decoder):
    """Runs sequences one by one, each with the state that the model itself maintains."""

    def __init__(self, model: Any, engine: Any, stops: frozenset[int], ranks: int) -> None:
        super().__init__(model, engine, stops, ranks)
        self._states: dict[TokenSequence, dict[str, Any]] = {}

    def join(self, sequences: Sequence[TokenSequence]) -> None:
        """Read new sequences; an error fails only the sequence that causes it."""
        for sequence in sequences:
            super().join([sequence])

    def step(self) -> None:
        """Add a token to each sequence; an error fails only the sequence that causes it."""
        if self._ranks > 1:
            self.advance()
            return
        for sequence in self.sequences:
            try:
                self._continue(sequence)
            except Exception as error:
                sequence.fail(error)

    def read(self, sequences: Sequence[TokenSequence]) -> None:
        """Read new sequences, each with a state of its own."""
        import torch

        for sequence in sequences:
            ids = torch.tensor([sequence.context], device=self._device)
            state = {"attention_mask": torch.ones_like(ids), "use_cache": True}
            logits = self._forward(sequence, state, ids, None)
            self.sequences = [*self.sequences, sequence]
            self._choose([sequence], logits)

    def advance(self) -> None:
        """Call the model once for each sequence."""
        for sequence in self.sequences:
            self._continue(sequence)

    def remove_ended(self) -> None:
        """Remove ended sequences and their states."""
        self.sequences = [sequence for sequence in self.sequences if not sequence.ended]
        self._states = {sequence: self._states[sequence] for sequence in self.sequences}

    def clear(self) -> None:
        """Remove all sequences and their states."""
        self.sequences, self._states = [], {}

    def _continue(self, sequence: TokenSequence) -> None:
        import torch

        ids = torch.tensor([sequence.context], device=self._device)
        self._choose([sequence], self._forward(sequence, self._states[sequence], ids, 1))

    def _forward(
        self, sequence: TokenSequence, state: dict[str, Any], ids: torch.Tensor, last: int | None
    ) -> torch.Tensor:
        """Call the model on the last tokens as `generate()` does, and keep its state."""
        inputs = self._model.prepare_inputs_for_generation(
            ids, next_sequence_length=last, is_first_iteration=last is None, **state
        )
        output = self._call(inputs | {"return_dict": True})
        self._states[sequence] = self._model._update_model_kwargs_for_generation(output, state)
        logits: torch.Tensor = output.logits
        return logits


class Sampler:
    """Draws the tokens of one sequence, with a random generator of its own."""

    def __init__(self, temperature: float, top_k: int, top_p: float, seed: int) -> None:
        import torch

        self._temperature = temperature
        self._top_k = top_k
        self._top_p = top_p if top_p > 0 else 1.0
        self._stream = torch.Generator().manual_seed(seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw a token."""
        import torch

        k = self._top_k if 0 < self._top_k < len(logits) else len(logits)
        best, where = (logits.cpu() / self._temperature).topk(k)
        weights = torch.softmax(best, 0)
        # Keep the fewest tokens whose probabilities add up to top_p, and always the likeliest.
        weights[(weights.cumsum(0) - weights) >= self._top_p] = 0
        return where[torch.multinomial(weights, 1, generator=self._stream)[0]]
