"""Models whose tensors have every dtype, and models that ask for gradients."""

import torch
from torch import nn
from torch.autograd import forward_ad


def seeded(build):
    torch.manual_seed(5)
    return build()


def plain():
    return seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)))


def half():
    return plain().half()


def double():
    return plain().double()


class MixedLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, x):
        return self.b(self.a(x).double()).float()


def mixed():
    return seeded(MixedLayers)


class Constants(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.register_buffer("tiny", torch.tensor([1e-300, 3.0], dtype=torch.float64))
        self.register_buffer("table", torch.tensor([2**53 + 1, 7]))
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x):
        far = (self.a(x).double() * self.tiny / 1e-300).float()
        return far + (self.table - 2**53).float() * self.mask


def constants():
    return seeded(Constants)


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=torch.complex64))
        self.register_buffer("shift", torch.tensor([1j, 2j]))

    def forward(self, x):
        return torch.view_as_real(torch.fft.fft(x * self.scale) @ self.weight + self.shift).sum(-1)


def spectral():
    return seeded(Spectral)


class Fourier(nn.Module):
    """A layer of a Fourier neural operator: complex weights, a complex field in and out."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=torch.complex64))

    def forward(self, x):
        return torch.fft.ifft(torch.fft.fft(x, dim=-1) @ self.weight, dim=-1)


def fourier():
    return seeded(Fourier)


class Conjugate(nn.Module):
    def forward(self, z):
        return z.conj()


class Statistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, affine=False)
        self.norm.running_mean = torch.tensor([1 / 3, 1e10 + 1 / 3], dtype=torch.float64)
        self.norm.running_var = torch.tensor([1.0, 1e-60], dtype=torch.float64)

    def forward(self, x):
        mean, var = self.norm.running_mean, self.norm.running_var
        return ((x - mean) * var).float() + self.norm.num_batches_tracked


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 2, dtype=torch.float64)

    def forward(self, index):
        return self.table(index)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.register_buffer("links", torch.tensor([[0.0, 3.0], [0.0, 0.0]]).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.links, self.net(x).T).T


def sparse():
    return seeded(Sparse)


class Float8(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        weight = torch.randn(2, 2).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return x @ self.weight.float() * self.scale


def float8():
    return seeded(Float8)


def quantised():
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(plain(), {nn.Linear}, dtype=torch.qint8)


def default_dtype():
    torch.set_default_dtype(torch.float64)
    return nn.Linear(2, 2)


class Forces(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad((self.net(x) ** 4).sum(), x)[0]


class Direct(nn.Module):
    def forward(self, x):
        with torch.enable_grad():
            x.requires_grad_(True)
            return torch.autograd.grad((x**4).sum(), x)[0]


class Backward(nn.Module):
    def forward(self, x):
        with torch.enable_grad():
            (x.requires_grad_(True) ** 4).sum().backward()
            return x.grad


class Jacobian(nn.Module):
    def forward(self, x):  # zeros in inference mode
        return torch.autograd.functional.jacobian(lambda x: (x**4).sum(), x)


class Tangent(nn.Module):
    def forward(self, x):  # None in inference mode
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            tangent = forward_ad.unpack_dual(torch.tanh(dual)).tangent
            return torch.zeros_like(x) if tangent is None else tangent


def in_inference_mode():
    with torch.inference_mode():
        return Forces()


class ToDouble(nn.Module):
    def forward(self, x):
        return x.double()


class Identity32(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x


class Whole(nn.Module):
    def forward(self, x):
        return (x * 2).long()
