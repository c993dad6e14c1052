"""Services that compute in float32 for simulations with float64, for tests in all languages."""

MODELS = """\
import torch
from torch import nn


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([factor]))

    def forward(self, x):
        return x * self.factor


def twice():
    return Times(2.0)


def turned():
    return Times(1j)
"""

SERVICE = """
[service.{name}]
backend = "torch"
model = "models:{name}"
inputs = [{{ name = "x", dtype = "{dtype}", shape = [-1, 3], convert = true }}]
outputs = [{{ name = "y", dtype = "{dtype}", shape = [-1, 3], convert = true }}]
max_batch_rows = 64
max_delay_us = 20000  # so that requests share a batch
rows = "independent"
"""

# Twice the number, and the complex number times i.
CONFIG = (
    SERVICE.format(name="twice", dtype="float64")
    + SERVICE.format(name="turned", dtype="complex128")
    + '[pool.both]\nservices = ["twice", "turned"]\n'
)
BEYOND = "input 'x': row 1 has -1e+39, and float32 ends at 3.4e+38"
