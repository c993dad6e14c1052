"""A network of one neuron, whose results are easy to check."""

import torch


def build() -> torch.nn.Module:
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.8)
        layer.bias.fill_(32.0)
    return layer
