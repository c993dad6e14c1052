"""The method of Levenberg and Marquardt: training steps for networks of some hundred weights.

A step takes the network as linear in its weights, and solves for those that fit a batch best; no
further from the present ones than a damping allows, which each step adapts.
"""

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

TRIES = 6  # with more damping each time, before the weights stay as they are
FIRST, LEAST, MOST = 1e-2, 1e-8, 1e4  # damping


class Batch:
    """The errors of a network on some pairs, and their derivatives, in double precision.

    Args:
        network: Maps inputs [rows, ...] to outputs [rows, ...].
        errors: Called with outputs, and what they should be; returns the error of each row [rows].
        inputs: [rows, ...].
        wanted: The outputs that the network should have.
    """

    def __init__(self, network, errors, inputs, wanted):
        self._network, self._errors_of = network, errors
        self._shapes = {name: weight.shape for name, weight in network.named_parameters()}
        self._buffers = {name: buffer.double() for name, buffer in network.named_buffers()}
        self._rows = inputs.double(), wanted.double()

    def _table(self, vector):
        """Return the weights by name."""
        parts = vector.split([shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}

    def _errors(self, table, inputs, wanted):
        found = functional_call(self._network, (table, self._buffers), (inputs,))
        return self._errors_of(found, wanted)

    def errors(self, vector):
        """Return the errors [rows] with these weights."""
        return self._errors(self._table(vector), *self._rows)

    def derivatives(self, vector):
        """Return the derivatives of the errors by the weights [rows, weights]."""

        def of_row(table, inputs, wanted):
            return self._errors(table, inputs[None], wanted[None])[0]

        found = vmap(grad(of_row), (None, 0, 0))(self._table(vector), *self._rows)
        return torch.cat([found[name].flatten(1) for name in self._shapes], dim=1)


def step(network, optimizer, errors, inputs, wanted):
    """Make a training step; return the loss. Of the optimizer, only its table keeps the damping."""
    batch, table = Batch(network, errors, inputs, wanted), optimizer.param_groups[0]
    before = parameters_to_vector(network.parameters()).detach().double()
    after, loss, table["damping"] = better(batch, before, table.get("damping", FIRST))
    vector_to_parameters(after.float(), network.parameters())
    return loss


def better(batch, weights, damping):
    """Find better weights; return them, their loss, and the damping of the next step."""
    errors, derivatives = batch.errors(weights), batch.derivatives(weights)
    loss = errors.square().mean()
    square = derivatives.T @ derivatives / len(errors)
    slope = derivatives.T @ errors[:, None] / len(errors)
    one = torch.eye(len(weights), dtype=square.dtype)
    for _ in range(TRIES):
        factor, failed = torch.linalg.cholesky_ex(square + damping * one)
        tried = weights - torch.cholesky_solve(slope, factor)[:, 0]
        found = batch.errors(tried).square().mean()
        if not failed and found < loss:
            return tried, found, max(LEAST, damping / 4)
        damping *= 4
    return weights, loss, min(MOST, damping)
