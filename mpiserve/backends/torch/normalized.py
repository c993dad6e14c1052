"""A network between tensors of about 0 and 1, and what tensors are scaled by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Shapes = Sequence[int | Sequence[int]]


def normalized(network: torch.nn.Module, inputs: Shapes, outputs: Shapes) -> torch.nn.Module:
    """Return a module that scales its inputs, calls a network, and scales its outputs back.

    The means and standard deviations are buffers, so they are kept with the weights. A trainer sets
    them from its first pairs, by the method `fit_scales(inputs, outputs)` of the module, which any
    module may have: its arguments are lists of tensors [rows, ...].

    Args:
        network: A module between scaled tensors.
        inputs: The shape of a row of each input; with 1 in place of a size, those values have
            one mean and one deviation together.
        outputs: The same of each output.
    """
    import torch

    # Made here, since torch is imported late.
    methods = {"forward": _forward, "fit_scales": _fit_scales}
    module: Any = type("Normalized", (torch.nn.Module,), methods)()
    module.network = network
    for side, shapes in (("input", inputs), ("output", outputs)):
        for i, shape in enumerate(shapes):
            size = (shape,) if isinstance(shape, int) else tuple(shape)
            module.register_buffer(f"{side}_mean_{i}", torch.zeros(size))
            module.register_buffer(f"{side}_scale_{i}", torch.ones(size))
    made: torch.nn.Module = module
    return made


def _forward(self: Any, *inputs: torch.Tensor) -> Any:
    scaled = []
    for i, tensor in enumerate(inputs):
        mean, scale = getattr(self, f"input_mean_{i}"), getattr(self, f"input_scale_{i}")
        number = tensor if tensor.is_floating_point() else tensor.to(mean.dtype)  # or it is bool
        scaled.append((number - mean) / scale)
    results = self.network(*scaled)
    if not isinstance(results, (tuple, list)):
        return results * self.output_scale_0 + self.output_mean_0
    return tuple(
        tensor * getattr(self, f"output_scale_{i}") + getattr(self, f"output_mean_{i}")
        for i, tensor in enumerate(results)
    )


def _fit_scales(self: Any, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
    for side, tensors in (("input", inputs), ("output", outputs)):
        for i, tensor in enumerate(tensors):
            mean, scale = getattr(self, f"{side}_mean_{i}"), getattr(self, f"{side}_scale_{i}")
            shared = [0, *(d + 1 for d, size in enumerate(mean.shape) if size == 1)]
            wide = tensor.double()
            mean.copy_(wide.mean(shared).reshape(mean.shape))
            deviation = wide.std(shared, correction=0).reshape(mean.shape)
            # The deviation of equal values may be rounding, and not 0.
            varies = (wide.amax(shared) > wide.amin(shared)).reshape(mean.shape)
            scale.copy_(deviation.where(varies, deviation.new_ones(())))
