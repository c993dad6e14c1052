"""Networks that differ in their weights alone, as one module, which says how much they differ."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import arranged
from mpiserve.backends.torch import saved_weights
from mpiserve.config.tables import COMPLEX_DTYPES, MODEL_DTYPES
from mpiserve.config.uncertainty import seen
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    import torch

    from mpiserve.config import ServiceConfig


def ensemble_of(service: ServiceConfig, module: torch.nn.Module) -> torch.nn.Module:
    """Make the ensemble of a service's module and the weights that its table names.

    The module that is made returns the means of the outputs, and behind them the uncertainty.

    Raises:
        ModelError: If a file does not fit the module, or no output has floating numbers.
    """
    import torch

    table = service.uncertainty
    assert table is not None
    dtypes = (*MODEL_DTYPES, *COMPLEX_DTYPES)
    if not any(tensor.dtype in dtypes for tensor in seen(service)):
        text = "no output has floating numbers, by which the networks of an ensemble could differ"
        raise ModelError(Code.EMODEL, text)
    networks = [module]
    for name in table.weights:
        other = copy.deepcopy(module)
        saved_weights.load(service, other, service.folder / name)
        networks.append(other)
    # Made here, since torch is imported late.
    ensemble: torch.nn.Module = type("Ensemble", (torch.nn.Module,), {"forward": _forward})()
    _fill(ensemble, service, networks)
    return ensemble


def _fill(ensemble: Any, service: ServiceConfig, networks: Sequence[torch.nn.Module]) -> None:
    """Give the ensemble the weights of all networks, one beside the other.

    Their names have dots, which those of a module must not have. The first network is no part of
    the module: it lends its code alone.
    """
    import torch

    table = service.uncertainty
    assert table is not None
    weights, buffers = torch.func.stack_module_state([each.eval() for each in networks])
    ensemble.names_of = [*weights], [*buffers]
    ensemble.weights = torch.nn.ParameterList(weights.values())
    for i, buffer in enumerate(buffers.values()):
        ensemble.register_buffer(f"buffer_{i}", buffer)
    ensemble.network = (networks[0],)
    ensemble.outputs = [tensor.name for tensor in seen(service)]
    ensemble.scales = [table.scales.get(name, 1.0) for name in ensemble.outputs]
    ensemble.has_rows = service.rows != "none"


def _forward(self: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Call all networks at once; return the outputs, and the uncertainty behind them.

    Outputs that are no floating numbers are those of the first network.
    """
    import torch

    def one(weights: Any, buffers: Any, inputs: Any) -> tuple[torch.Tensor, ...]:
        result = torch.func.functional_call(self.network[0], (weights, buffers), inputs)
        return tuple(arranged(result, self.outputs, "outputs"))

    weights = dict(zip(self.names_of[0], self.weights, strict=True))
    names = enumerate(self.names_of[1])
    buffers = {name: getattr(self, f"buffer_{i}") for i, name in names}
    every = torch.func.vmap(one, in_dims=(0, 0, None))(weights, buffers, inputs)
    floating = [each.is_floating_point() or each.is_complex() for each in every]
    means = [each.mean(0) if mean else each[0] for each, mean in zip(every, floating, strict=True)]
    spreads = [
        _spread(each, self.has_rows) / scale
        for each, scale, mean in zip(every, self.scales, floating, strict=True)
        if mean
    ]
    return [*means, torch.stack(spreads).amax(0)]


def _spread(every: torch.Tensor, has_rows: bool) -> torch.Tensor:
    """Return the largest standard deviation of each row, of [networks, rows, ...], as float32."""
    wide = every.float() if every.element_size() < 4 else every  # float64 differs by less
    spread = wide.std(0).float()
    if not has_rows:
        return spread.amax()
    # Not by a number of rows, which torch.export would take for a constant.
    return spread.flatten(1).amax(1) if spread.ndim > 1 else spread
