"""Models of several dtypes in a job, by the default backend: each computes as it does alone."""

from __future__ import annotations

import pytest
from coupling import RUN

MODELS = """\
import torch
from torch import nn


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, x):
        return self.b(self.a(x).double()).float()


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(2))
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=torch.complex64))

    def forward(self, x):
        return (torch.fft.fft(x * self.scale) @ self.weight).imag.contiguous()


class Forces(nn.Module):
    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad((x**4).sum(), x)[0]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.tensor([1.0, 1e-12], dtype=torch.float64))
        self.fc1 = nn.Linear(2, 8)
        self.fc2 = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x))) + self.shift


def seeded(kind):
    torch.manual_seed(3)
    return kind()


def mixed():
    return seeded(Mixed)


def spectral():
    return seeded(Spectral)


def plain():
    return seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)))


def block():
    return seeded(lambda: nn.Sequential(Block().double()))
"""

SERVICE = """
[service.{name}]
model = "models:{model}"
{settings}
inputs = [{{ name = "x", dtype = "{dtype}", shape = [-1, 2] }}]
outputs = [{{ name = "y", dtype = "{dtype}", shape = [-1, 2] }}]
max_batch_rows = 64
chunk_rows = 64
"""
SHARDED = """\
tensor_parallel = 2
options = { injection_policy = { "models:Block" = [".fc2"] } }
"""
SERVICES = {
    "mixed": ("mixed", "", "float32"),
    "spectral": ("spectral", "", "float32"),
    "forces": ("Forces", "", "float32"),
    "narrow": ("plain", "", "float64"),
    "double": ("plain", 'dtype = "float64"', "float64"),
    "sharded": ("block", SHARDED, "float64"),
}
POOL = '[pool.all]\nservices = ["mixed", "spectral", "forces", "narrow", "double"]\n'

SIMULATION = """\
import models
import mpiserve
import numpy as np
import torch

torch.set_num_threads(1)
x = np.random.default_rng(1).standard_normal((6, 2))
narrow = lambda x: models.plain()(x.float()).double()
alone = {
    "mixed": models.mixed(),
    "spectral": models.spectral(),
    "forces": models.Forces(),
    "narrow": narrow,
    "double": models.plain().double(),
    "sharded": models.block(),
}
with mpiserve.open() as session:
    for name, model in alone.items():
        mine = x if name in ("narrow", "double", "sharded") else x.astype(np.float32)
        expected = model(torch.from_numpy(mine)).detach().numpy()
        for _ in range(3):
            result = session.service(name)(mine, timeout=60)
            error = np.abs(result - expected).max() / np.finfo(mine.dtype).eps
            assert error <= (2**30 if name == "narrow" else 4), (name, error)
    x[4, 0] = 1e300
    try:
        session.service("narrow")(x, timeout=60)
    except mpiserve.ModelError as error:
        print(error, flush=True)
    session.comm.Barrier()
"""


@pytest.mark.takes_long
def test_models_of_several_dtypes_compute_as_they_do_alone(mpiexec, tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "sim.py").write_text(SIMULATION)
    text = "".join(
        SERVICE.format(name=name, model=model, settings=settings, dtype=dtype)
        for name, (model, settings, dtype) in SERVICES.items()
    )
    (tmp_path / "c.toml").write_text(text + POOL)
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"], timeout=170)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "input 'x': row 4 has 1e+300, and float32 ends at 3.4e+38"
    said = [line for line in done.stderr.splitlines() if "it is converted" in line]
    assert [line.count("service narrow: ") for line in said] == [1, 1]
    assert "of 16 digits 7 remain" in done.stderr
    assert done.stderr.count("service forces: the model needs gradients") == 1
