"""What the check serves: small modules with fixed weights, the same on every rank and device."""

from __future__ import annotations

import torch
from torch import nn


def seeded(module: nn.Module) -> nn.Module:
    """Fill a module with numbers that depend on nothing but their place."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            real = torch.view_as_real(parameter) if parameter.is_complex() else parameter
            real.copy_(torch.randn(real.shape, generator=generator) / 8)
    return module.eval()


class Where(nn.Module):
    """Gives 1 on a GPU and 0 elsewhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, float(x.is_cuda))


class Spectral(nn.Module):
    """A layer of a Fourier neural operator: weights are complex."""

    def __init__(self, channels: int = 4, modes: int = 6) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.zeros(channels, channels, modes, dtype=torch.complex64))
        self.skip = nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(x)
        low = torch.einsum("bim,iom->bom", spectrum[:, :, : self.modes], self.weight)
        padded = nn.functional.pad(low, (0, spectrum.shape[-1] - self.modes))
        return torch.tanh(torch.fft.irfft(padded, n=x.shape[-1]) + self.skip(x))


class Hungry(nn.Module):
    """Asks for more memory than a GPU has when a row is negative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < 0).any()):
            return x + torch.empty(2**40, device=x.device)[0]
        return 2 * x


def where() -> nn.Module:
    return Where()


def mlp(wide: bool = False) -> nn.Module:
    """The small closure network, and the wide one."""
    sizes = (64, 256, 256, 64) if wide else (8, 32, 32, 8)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return seeded(nn.Sequential(*layers[:-1]))


def conv() -> nn.Module:
    return seeded(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3)))


def fno() -> nn.Module:
    return seeded(nn.Sequential(Spectral(), Spectral()))


def identity() -> nn.Module:
    return nn.Identity()


def hungry() -> nn.Module:
    return Hungry()
