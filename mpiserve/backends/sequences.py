"""Sequences in generation: they join and leave between two steps, each as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Line:
    """One sequence: a prompt, and the tokens that continue it."""

    prompt: list[int]
    limit: int  # of tokens
    sampler: Sampler | None = None  # or the likeliest token
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class Running:
    """The sequences that a model continues together, a token each in every step.

    Prompts are pushed to the right, so that all go on in the same column of the cache; what
    is left of them is masked. Caches of transformers are plain here whatever the model:
    those that keep a window alone could not be joined.

    Args:
        engine: What to call.
        stops: Tokens that end a sequence.
        ranks: That run the model together.
        arguments: Further ones of the call.
    """

    def __init__(
        self, engine: Any, stops: Iterable[int], ranks: int, device: Any, **arguments: Any
    ) -> None:
        self.lines: list[Line] = []
        self._engine = engine
        self._stops = frozenset(stops)
        self._ranks = ranks
        self._device = device
        self._arguments = arguments
        self._cache: Any = None
        self._mask: torch.Tensor  # [lines, columns of the cache]

    def join(self, lines: Sequence[Line]) -> None:
        """Read the prompts of some lines, which are not empty, and choose their first tokens."""
        import torch
        from transformers import DynamicCache

        width = max(len(line.prompt) for line in lines)
        pads = [width - len(line.prompt) for line in lines]
        padded = [[0] * pad + line.prompt for pad, line in zip(pads, lines, strict=True)]
        ids = torch.tensor(padded, device=self._device)
        columns = torch.arange(width, device=self._device)[None, :]
        positions = columns - torch.tensor(pads, device=self._device)[:, None]
        mask, cache = (positions >= 0).long(), DynamicCache()
        chosen = self._choose(lines, ids, mask, positions.clamp(min=0), cache)
        self._merge(lines, mask, cache)
        self._add(lines, chosen)

    def step(self) -> None:
        """Add a token to each line."""
        import torch

        last = [line.tokens[-1] for line in self.lines]
        ids = torch.tensor(last, device=self._device)[:, None]
        positions = self._mask.sum(1, keepdim=True)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(last), 1)], 1)
        self._add(self.lines, self._choose(self.lines, ids, self._mask, positions, self._cache))

    def sweep(self) -> None:
        """Let the lines go that have ended: the others get faster."""
        stay = [i for i, line in enumerate(self.lines) if not line.ended]
        if len(stay) == len(self.lines):
            return
        self.lines = [self.lines[i] for i in stay]
        if not stay:
            self._cache = None
            return
        import torch

        rows = torch.tensor(stay, device=self._device)
        first = int(self._mask[rows].argmax(1).min())  # columns before it are nobody's
        self._mask = self._mask[rows, first:]
        change(self._cache, lambda states: states[rows, :, first:])

    def clear(self) -> None:
        """Forget all lines."""
        self.lines, self._cache = [], None

    def _choose(
        self,
        lines: Sequence[Line],
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Any,
    ) -> list[int]:
        output = self._engine(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self._arguments,
        )
        logits = output.logits[:, -1].float()
        chosen = logits.argmax(1)
        for i, line in enumerate(lines):
            if line.sampler:
                chosen[i] = line.sampler(logits[i])
        if self._ranks > 1:
            import torch.distributed as dist

            # Ranks that went different ways would wait for each other for ever.
            dist.broadcast(chosen, 0)
        return chosen.tolist()

    def _merge(self, lines: Sequence[Line], mask: torch.Tensor, cache: Any) -> None:
        import torch

        if not self.lines:
            self.lines, self._mask, self._cache = list(lines), mask, cache
            return
        self.lines += lines
        width = max(mask.shape[1], self._mask.shape[1])
        self._mask = torch.cat([pushed(self._mask, 1, width), pushed(mask, 1, width)])
        for mine, new in zip(self._cache.layers, cache.layers, strict=True):
            mine.keys = torch.cat([pushed(mine.keys, 2, width), pushed(new.keys, 2, width)])
            mine.values = torch.cat([pushed(mine.values, 2, width), pushed(new.values, 2, width)])

    def _add(self, lines: Sequence[Line], chosen: list[int]) -> None:
        for line, token in zip(lines, chosen, strict=True):
            line.tokens.append(token)
            line.ended |= token in self._stops or len(line.tokens) >= line.limit


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


def pushed(tensor: torch.Tensor, dim: int, width: int) -> torch.Tensor:
    """Widen one dimension with zeros on the left."""
    import torch

    pads = [0, 0] * (tensor.dim() - 1 - dim) + [width - tensor.shape[dim], 0]
    return torch.nn.functional.pad(tensor, pads) if pads[-2] else tensor


def change(cache: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Apply a function to all keys and values, which are [lines, heads, columns, width]."""
    for layer in cache.layers:
        layer.keys, layer.values = function(layer.keys), function(layer.values)
