"""Sequences in generation: they join and leave between two steps, each as if it were alone."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mpiserve.backends.language.caches import change, join, new_cache, pushed
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    import torch

    from mpiserve.backends.language.generation_settings import Rules

CACHE_NAMES = ("cache", "past_key_values", "cache_params")  # the first is that of transformers 5.24


@dataclass(eq=False)
class Line:
    """One sequence: a prompt, and the tokens that continue it."""

    prompt: list[int]
    limit: int  # of tokens
    sampler: Sampler | None = None  # or the likeliest token
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    rules: Rules | None = None  # what generation_config.json asks for beside the end tokens
    error: Exception | None = None  # why it has ended, if it failed

    @property
    def context(self) -> list[int]:
        """What the next token follows."""
        return self.prompt + self.tokens

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self.error, self.ended = error, True

    def choose(self, logits: torch.Tensor) -> int:
        """Choose the next token."""
        if self.rules:
            logits = self.rules.scores(self.context, logits)
        return int(self.sampler(logits) if self.sampler else logits.argmax())

    def add(self, token: int, stops: frozenset[int]) -> None:
        """Take the next token."""
        self.tokens.append(token)
        self.ended = token in stops or len(self.tokens) >= self.limit
        if self.rules and not self.ended:
            self.ended = self.rules.end(self.context)


class Sequences(ABC):
    """The sequences that a model continues, a token each in every step.

    Args:
        model: For what it knows of itself.
        engine: What to call.
        stops: Tokens that end a sequence.
        ranks: That run the model together.
    """

    def __init__(self, model: Any, engine: Any, stops: frozenset[int], ranks: int) -> None:
        self.lines: list[Line] = []
        self._model = model
        self._engine = engine
        self._stops = stops
        self._ranks = ranks
        self._device = next(model.parameters()).device
        self._known = inspect.signature(model.forward).parameters

    @abstractmethod
    def read(self, lines: Sequence[Line]) -> None:
        """Read what some lines have, and add a token to each. All of them, or it raises."""

    @abstractmethod
    def advance(self) -> None:
        """Add a token to each line. What this raises leaves the lines in disorder."""

    @abstractmethod
    def sweep(self) -> None:
        """Let the lines go that have ended: the others get faster."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all lines."""

    def join(self, lines: Sequence[Line]) -> None:
        """Read some lines, which are not empty. Where that fails, halves find the guilty ones.

        Raises:
            Exception: If several ranks run the model: they must stay in step, whichever failed.
        """
        lines = [line for line in lines if not line.ended]
        if not lines:
            return
        try:
            self.read(lines)
        except Exception as error:
            if self._ranks > 1:
                raise
            if len(lines) == 1:
                lines[0].fail(error)
                return
            half = len(lines) // 2
            self.join(lines[:half])
            self.join(lines[half:])

    def step(self) -> None:
        """Add a token to each line. Where that fails, all are read again, for the guilty ones.

        Raises:
            Exception: If several ranks run the model.
        """
        try:
            self.advance()
        except Exception:
            if self._ranks > 1:
                raise
            lines = self.lines
            self.clear()
            self.join(lines)

    def _call(self, inputs: dict[str, Any]) -> Any:
        # Else the logits of a whole prompt are computed, of which the last are used.
        last_only = {"logits_to_keep": 1} if "logits_to_keep" in self._known else {}
        return self._engine(**last_only | inputs)

    def _choose(self, lines: Sequence[Line], logits: torch.Tensor) -> None:
        """Add to each line the token that follows the last column of the logits."""
        import torch

        logits = logits[:, -1].float()
        chosen = [self._chosen(line, row) for line, row in zip(lines, logits, strict=True)]
        if self._ranks > 1:
            import torch.distributed as dist

            # Ranks that went different ways would wait for each other for ever.
            agreed = torch.tensor(chosen, device=self._device)
            dist.broadcast(agreed, 0)
            chosen = agreed.tolist()
        for line, token in zip(lines, chosen, strict=True):
            if line.error is None:
                line.add(token, self._stops)

    def _chosen(self, line: Line, logits: torch.Tensor) -> int:
        try:
            if bool(logits.isnan().any()):
                raise ModelError(Code.EMODEL, "the model's logits are not numbers (NaN)")
            return line.choose(logits)
        except Exception as error:
            if self._ranks > 1:
                raise
            line.fail(error)
            return 0


class Joined(Sequences):
    """Sequences in one batch.

    Prompts are pushed to the right, so that all go on in the same column of the cache; what
    is left of them is masked. Layers of the cache that keep a window alone could not be
    joined: they are replaced by such as keep all.

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
        self._mask: torch.Tensor  # [lines, columns of the cache]

    def read(self, lines: Sequence[Line]) -> None:
        """Read lines together, then join them with those that are there."""
        import torch

        contexts = [line.context for line in lines]
        width = max(map(len, contexts))
        pads = [width - len(context) for context in contexts]
        padded = [[0] * pad + context for pad, context in zip(pads, contexts, strict=True)]
        ids = torch.tensor(padded, device=self._device)
        columns = torch.arange(width, device=self._device)[None, :]
        positions = columns - torch.tensor(pads, device=self._device)[:, None]
        mask, cache = (positions >= 0).long(), new_cache(self._model.config)
        logits = self._forward(ids, mask, positions.clamp(min=0), cache)
        self._merge(lines, mask, cache)
        try:
            self._choose(lines, logits)
        except BaseException:  # they are to be read again, or to fail: once each
            self.lines, had = [line for line in self.lines if line not in lines], self.lines
            self._keep([i for i, line in enumerate(had) if line not in lines])
            raise

    def advance(self) -> None:
        """Call the model once for all."""
        import torch

        last = [line.context[-1] for line in self.lines]
        ids = torch.tensor(last, device=self._device)[:, None]
        positions = self._mask.sum(1, keepdim=True)
        mask = torch.cat([self._mask, self._mask.new_ones(len(last), 1)], 1)
        logits = self._forward(ids, mask, positions, self._cache)
        self._mask = mask
        self._choose(self.lines, logits)

    def sweep(self) -> None:
        """Take rows out of the cache, and columns that are nobody's any more."""
        stay = [i for i, line in enumerate(self.lines) if not line.ended]
        if len(stay) == len(self.lines):
            return
        self.lines = [self.lines[i] for i in stay]
        self._keep(stay)

    def _keep(self, stay: list[int]) -> None:
        """Leave these rows in the cache, and the columns that are somebody's."""
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
        """Forget the cache too."""
        self.lines, self._cache = [], None

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
        if "position_ids" in self._known:
            inputs["position_ids"] = positions
        logits: torch.Tensor = self._call(inputs | {self._cache_name: cache}).logits
        return logits

    def _merge(self, lines: Sequence[Line], mask: torch.Tensor, cache: Any) -> None:
        if not self.lines:
            self.lines, self._mask, self._cache = list(lines), mask, cache
            return
        try:
            self._concatenate(mask, cache)
        except Exception:
            # Some layers are joined and some are not: those that run are read again.
            old = self.lines
            self.clear()
            self.join(old)
            raise
        self.lines = [*self.lines, *lines]

    def _concatenate(self, mask: torch.Tensor, cache: Any) -> None:
        import torch

        width = max(mask.shape[1], self._mask.shape[1])
        joined = torch.cat([pushed(self._mask, 1, width), pushed(mask, 1, width)])
        for mine, new in zip(self._cache.layers, cache.layers, strict=True):
            join(mine, new, width)
        self._mask = joined


class Alone(Sequences):
    """Sequences one by one, each with the state that the model itself makes and carries on."""

    def __init__(self, model: Any, engine: Any, stops: frozenset[int], ranks: int) -> None:
        super().__init__(model, engine, stops, ranks)
        self._states: dict[Line, dict[str, Any]] = {}

    def join(self, lines: Sequence[Line]) -> None:
        """Read some lines; one that fails costs itself."""
        for line in lines:
            super().join([line])

    def step(self) -> None:
        """Add a token to each line; one that fails costs itself."""
        if self._ranks > 1:
            self.advance()
            return
        for line in self.lines:
            try:
                self._go_on(line)
            except Exception as error:
                line.fail(error)

    def read(self, lines: Sequence[Line]) -> None:
        """Begin with a state of its own for each."""
        import torch

        for line in lines:
            ids = torch.tensor([line.context], device=self._device)
            state = {"attention_mask": torch.ones_like(ids), "use_cache": True}
            logits = self._forward(line, state, ids, None)
            self.lines = [*self.lines, line]
            self._choose([line], logits)

    def advance(self) -> None:
        """Call the model for each."""
        for line in self.lines:
            self._go_on(line)

    def sweep(self) -> None:
        """Drop states."""
        self.lines = [line for line in self.lines if not line.ended]
        self._states = {line: self._states[line] for line in self.lines}

    def clear(self) -> None:
        """Forget the states too."""
        self.lines, self._states = [], {}

    def _go_on(self, line: Line) -> None:
        import torch

        ids = torch.tensor([line.context], device=self._device)
        self._choose([line], self._forward(line, self._states[line], ids, 1))

    def _forward(
        self, line: Line, state: dict[str, Any], ids: torch.Tensor, last: int | None
    ) -> torch.Tensor:
        """Call the model on the last tokens as `generate()` does, and keep its state."""
        inputs = self._model.prepare_inputs_for_generation(
            ids, next_sequence_length=last, is_first_iteration=last is None, **state
        )
        output = self._call(inputs | {"return_dict": True})
        self._states[line] = self._model._update_model_kwargs_for_generation(output, state)
        logits: torch.Tensor = output.logits
        return logits


class Sampler:
    """Draws the tokens of one line, from a stream of numbers of its own."""

    def __init__(self, temperature: float, top_k: int, top_p: float, seed: int) -> None:
        import torch

        self._temperature = temperature
        self._top_k = top_k
        self._top_p = top_p if top_p > 0 else 1.0
        self._stream = torch.Generator().manual_seed(seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw one."""
        import torch

        k = self._top_k if 0 < self._top_k < len(logits) else len(logits)
        best, where = (logits.cpu() / self._temperature).topk(k)
        weights = torch.softmax(best, 0)
        # The fewest that make up top_p together, the likeliest always.
        weights[(weights.cumsum(0) - weights) >= self._top_p] = 0
        return where[torch.multinomial(weights, 1, generator=self._stream)[0]]
