"""What is known of a model of transformers: its tokens, its positions, its rounding."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")


def vocabulary(model: Any) -> int:
    """How many tokens a model knows: those that it has vectors for."""
    size = getattr(model.config.get_text_config(), "vocab_size", sys.maxsize)
    rows = getattr(model.get_input_embeddings(), "num_embeddings", size)
    return min(size, rows)


def positions(model: Any) -> int:
    """How many tokens a sequence may have; a great number where nothing says so."""
    config = model.config.get_text_config()
    said = [getattr(config, name, None) for name in POSITIONS]
    most = min((one for one in said if isinstance(one, int) and one > 0), default=sys.maxsize)
    return most - _before_the_first(model)


def _before_the_first(model: Any) -> int:
    """Rows of the table of positions that no token has, as RoBERTa's, which begins behind a pad."""
    import torch

    tables = (
        module.padding_idx
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding)
    )
    return max((index + 1 for index in tables if index is not None), default=0)


def distance(seen: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> str:
    """Say how far rows are from what they should be, or "" if that may be rounding.

    Layers add their rounding up, and float32 is not kept by all kernels. What is wrong is
    farther off: where states were lost, random models of all architectures showed over 7 %.
    """
    import torch

    most = max(0.005, torch.finfo(dtype).eps ** 0.5)
    size = wanted.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    far = float(((seen - wanted).norm(dim=1) / size).max())
    return "" if far <= most else f"{100 * far:.2g} % off, where {100 * most:.2g} % may be rounding"
