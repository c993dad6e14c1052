"""Models whose rows belong together, and models that write to their input or keep it."""

import ctypes
import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Of(nn.Module):
    """A module of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def squeezed(x):
    """Lose the rows where there is one."""
    return x.squeeze(0) * 2


def padded(x):
    """Pad to a multiple of 8 rows, and forget that it did."""
    whole = torch.cat([x, x.new_zeros(-len(x) % 8, x.shape[1])])
    return (whole - whole.mean(0))[: len(x)]


def in_order(x):
    return torch.cumsum(x, 0)


TOGETHER = {
    "mean": lambda x: x - x.mean(0, keepdim=True),
    "softmax": lambda x: torch.softmax(x, 0),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "cumsum": in_order,
    "largest": lambda x: x / x.max(),
    "sort": lambda x: torch.sort(x, 0).values,
    "argsort": lambda x: torch.argsort(x, 0).float(),
    "first": lambda x: x - x[:1],
    "last": lambda x: x - x[-1:],
    "attention": lambda x: torch.softmax(x @ x.T, -1) @ x,
    "differences": lambda x: x - torch.roll(x, 1, 0),
    "positions": lambda x: x + torch.arange(len(x))[:, None],
    "count": lambda x: x / len(x),
    "one_row": lambda x: x if len(x) > 1 else x * 2,
    "over_32": lambda x: x - x.mean(0) if len(x) > 32 else x,
    "over_100": lambda x: x - x.mean(0) if len(x) > 100 else x,
    "padded": padded,
    "squeeze_mean": lambda x: x - x.squeeze().mean(0),
}
UNSURE = {
    "squeezed": squeezed,
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "noise": lambda x: x + torch.rand_like(x),
    "nothing": lambda x: torch.log(x - 1e9),
    "constant": lambda x: torch.ones_like(x),
}
INDEPENDENT = {
    "twice": lambda x: 2 * x,
    "network": nn.Sequential(nn.Linear(2, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 2)),
    "batch_norm_eval": nn.BatchNorm1d(2),
    "dropout_eval": nn.Dropout(0.5),
    "where": lambda x: torch.where(x > 0, torch.log(x), x),
    "identity": nn.Identity(),
    "float64_inside": lambda x: torch.sin(x.double()).float(),
}


def kept_in(store):
    """Keep the input in a list or by an attribute."""
    last = [torch.zeros(1)]

    def function(x):
        if store == "list":
            last.append(x)
        elif store == "view":
            last[0] = x[:1].T
        elif store == "numpy":
            last[0] = x.numpy()
        else:
            last[0] = memoryview(x.numpy())
        return 2 * x

    return function


def returned_and_written(x, last=[]):  # noqa: B006
    """Give the input back, and write to it at the next call."""
    if last:
        last.pop().mul_(2)
    last.append(x)
    return x


CHANGES = {
    "sub_": lambda x: x.sub_(1) + 0.0,
    "view": lambda x: x.view(-1)[:2].zero_().sum() + x,
    "out": lambda x: torch.add(x, 1, out=x),
    "relu_": lambda x: F.relu(x, inplace=True) * 2,
    "data": lambda x: x.data.fill_(3.0) + 0.0,
    "numpy": lambda x: x.numpy().__isub__(1) is None or 2 * x,
    "seldom": lambda x: x.nan_to_num_() * 2,
    "far": lambda x: x.clamp_(-1e20, 1e20) * 2,
}
KEEPS = {f"in_{store}": kept_in(store) for store in ("list", "view", "numpy", "memory")}
KEEPS["returned"] = returned_and_written
ALL = TOGETHER | UNSURE | INDEPENDENT | CHANGES | KEEPS


def module(name):
    torch.manual_seed(0)
    made = ALL[name]
    return made if isinstance(made, nn.Module) else Of(made)


class Keeper(nn.Module):
    """Answers with its input before, of which it should have kept a copy."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        last = x if self.last is None or len(self.last) != len(x) else self.last
        self.last = x
        return last + 0.0


class Inplace(nn.Module):
    """2 (x - 1), computed in its input."""

    def forward(self, x):
        x.sub_(1.0).mul_(2.0)
        return x + 0.0


class RowMix(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


class Same(nn.Module):
    """Returns one buffer again and again."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def forward(self, x):
        out = self.made.setdefault(len(x), torch.empty(x.shape))
        return torch.mul(x, 2, out=out)


class Solve(nn.Module):
    """Fails on zeros, as those of warm-up."""

    def forward(self, a):
        return torch.linalg.inv(a)


# ---- callables of the backend python


def mean(x):
    return x - x.mean(0)


def subtract(x):
    np.subtract(x, 1, out=x)
    return x * 2


def writeable(x):
    x.flags.writeable = True
    x -= 1
    return x * 2


def by_address(x):
    numbers = (ctypes.c_float * x.size).from_address(x.ctypes.data)
    memory = np.frombuffer(numbers, np.float32)
    memory -= 1
    return x * 2


class Keeping:
    def __init__(self):
        self.seen = []

    def __call__(self, x):
        self.seen.append(x[:1])
        return x * 2


kept = Keeping()


class Counting:
    """A state between calls."""

    def __init__(self):
        self.calls = itertools.count()

    def __call__(self, x):
        return x + np.float32(next(self.calls))


def of_clients(x, clients):
    assert (clients == -1).all()
    return x * 2


def fails(x):
    raise ValueError("no rows are good")


def embed(i):
    """Look integers up in a table of four."""
    return np.arange(8, dtype=np.float32).reshape(4, 2)[i[:, 0]]


def shares(i):
    """Integers whose rows belong together."""
    return (i / max(i.sum(), 1)).astype(np.float32)


def decrement(i):
    """Write to integers by way of torch, which does not ask."""
    t = torch.from_numpy(i)
    t -= 1
    return t.numpy()[:, :1].repeat(2, 1).astype(np.float32)


def votes(x):
    return (x > x.mean(0)).astype(np.float32)


def wide(x):
    """Is the same for all random numbers: its own are thousands."""
    return np.maximum(x - 1000, 0)


def of_one(x):
    """Hand the input on as it is."""
    return x
