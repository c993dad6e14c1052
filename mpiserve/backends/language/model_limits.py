"""Find the limits of a model of transformers: its tokens, positions and rounding."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")


def vocabulary(model: Any) -> int:
    """Return the number of tokens that a model has embeddings for."""
    size = getattr(model.config.get_text_config(), "vocab_size", sys.maxsize)
    rows = getattr(model.get_input_embeddings(), "num_embeddings", size)
    return min(size, rows)


def positions(model: Any) -> int:
    """Return the most tokens of a sequence; sys.maxsize if the model sets no limit."""
    config = model.config.get_text_config()
    said = [getattr(config, name, None) for name in POSITIONS]
    most = min((one for one in said if isinstance(one, int) and one > 0), default=sys.maxsize)
    return most - _before_the_first(model)


def _before_the_first(model: Any) -> int:
    """Return the unused first rows of a table of positions, as in RoBERTa."""
    import torch

    tables = (
        module.padding_idx
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding)
    )
    return max((index + 1 for index in tables if index is not None), default=0)


def distance(seen: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> str:
    """Describe the difference of rows, or return "" if it may be rounding.

    Layers add up rounding, and not all kernels keep float32. Real errors are larger: random
    models of all architectures differ by over 7 % if states are lost.
    """
    import torch

    most = max(0.005, torch.finfo(dtype).eps ** 0.5)
    size = wanted.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    far = float(((seen - wanted).norm(dim=1) / size).max())
    return "" if far <= most else f"{100 * far:.2g} % off, where {100 * most:.2g} % may be rounding"
