"""Join and cut the layers of a transformers cache, for sequences that join and leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    import torch


def new_cache(config: Any) -> Any:
    """Make an empty cache whose layers can be joined.

    Raises:
        ModelError: If the model's cache has layers that cannot be joined.
    """
    from transformers import cache_utils as kinds

    plain: dict[Any, Any] = {
        kinds.DynamicSlidingWindowLayer: kinds.DynamicLayer,
        kinds.LinearAttentionAndSlidingWindowAttentionLayer: (
            kinds.LinearAttentionAndFullAttentionLayer
        ),
    }
    cache = kinds.DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        if type(layer) in plain:
            states = getattr(layer, "number_of_states", 1)
            layer = cache.layers[i] = plain[type(layer)](number_of_states=states)
        if type(layer) not in (kinds.LinearAttentionLayer, kinds.DummyLayer, *plain.values()):
            text = f"its cache has a layer {type(layer).__name__}, which cannot be joined"
            raise ModelError(Code.EMODEL, text)
    return cache


def join(layer: Any, other: Any, width: int) -> None:
    """Append the sequences of another layer to those of a layer.

    Args:
        layer: The layer, which is changed.
        other: A layer of the same kind.
        width: The number of columns of the new keys and values.
    """
    import torch

    others = _states(other)

    def columns(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([pushed(states, 2, width), pushed(next(others), 2, width)])

    def rows(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([states, next(others)])

    change(layer, columns, rows)


def change(
    layer: Any,
    columns: Callable[[torch.Tensor], torch.Tensor],
    rows: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Apply functions to the tensors of a layer.

    Args:
        layer: A layer of the cache.
        columns: The function for keys and values, which are [sequences, heads, columns, width].
        rows: The function for states without columns, which are [sequences, ...].
    """
    if getattr(layer, "keys", None) is not None:
        layer.keys, layer.values = columns(layer.keys), columns(layer.values)
    for states in _recurrent(layer):
        for key in states:
            if states[key] is not None:
                states[key] = rows(states[key])


def _states(layer: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a layer, in the order in which `change` changes them."""
    if getattr(layer, "keys", None) is not None:
        yield layer.keys
        yield layer.values
    for states in _recurrent(layer):
        yield from (one for one in states.values() if one is not None)


def _recurrent(layer: Any) -> list[dict[int, Any]]:
    return [getattr(layer, name, {}) for name in ("conv_states", "recurrent_states")]


def pushed(tensor: torch.Tensor, dim: int, width: int) -> torch.Tensor:
    """Pad one dimension with zeros on the left."""
    import torch

    pads = [0, 0] * (tensor.dim() - 1 - dim) + [width - tensor.shape[dim], 0]
    return torch.nn.functional.pad(tensor, pads) if pads[-2] else tensor
