"""The two small networks of the ensemble, always with the same weights."""

import torch


def surrogate():
    torch.manual_seed(1)
    layers = [torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8)]
    return torch.nn.Sequential(*layers)


def risk():
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
