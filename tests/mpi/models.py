"""The models that these tests serve."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve import Backend, Steps

WEIGHTS_MISSING = "the weights of this model are missing"


def identity(*arrays: np.ndarray) -> list[np.ndarray]:
    return list(arrays)


def mirror(*arrays: np.ndarray) -> list[np.ndarray]:
    """Reverse each row: an answer that only its own question can have."""
    return [array[:, ::-1] for array in arrays]


def scale(x: np.ndarray) -> np.ndarray:
    return 2 * x + 1


def combine(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name, and not in the order of the signature."""
    return {"product": a * b[:, None], "difference": a.sum(axis=1) - b}


def moody(x: np.ndarray) -> np.ndarray:
    """Refuse negative numbers; sleep as many seconds as the first number says."""
    if (x < 0).any():
        raise ValueError(f"negative input {x.min():g}")
    time.sleep(float(x.flat[0]))
    return 2 * x


def deadly(x: np.ndarray) -> np.ndarray:
    """Kill the process at 13."""
    if (x == 13).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * x


def gated(x: np.ndarray, gate: str) -> np.ndarray:
    """Answer when a file is there."""
    while not os.path.exists(gate):
        time.sleep(0.001)
    return 2 * x + 1


def after_call(x: np.ndarray, folder: str) -> np.ndarray:
    """Answer all but the first step when a file with the number of the step is there."""
    return 2 * x if x[0] == 0 else gated(x, f"{folder}/{x[0]:g}") - 1


def noted(x: np.ndarray, seen: str, gate: str) -> np.ndarray:
    """Write down what it sees, and answer when a file is there."""
    with open(seen, "a") as file:
        file.writelines(f"{value:g}\n" for value in x)
    return gated(x, gate)


class Numbered:
    """Answers with the number of the batch."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.full(len(x), self.calls, np.int64)


class Sleeper:
    """Sleeps for each row, longer on the last rank of the world: cores are no limit."""

    def __init__(self, seconds: float, last: float = 1.0) -> None:
        slow = MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1
        self.seconds = seconds * (last if slow else 1.0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        time.sleep(len(x) * self.seconds)
        return x


class Paced:
    """Multiplies, and sleeps as many seconds as the first number says.

    A rank of one test loads it so many times at most, and never holds two.
    """

    loads: dict[tuple[str, float], int] = {}
    held: dict[str, int] = {}

    def __init__(self, test: str, factor: float | str, times: int = 1000) -> None:
        factor = float(factor)
        Paced.loads[test, factor] = Paced.loads.get((test, factor), 0) + 1
        if Paced.loads[test, factor] > times:
            raise RuntimeError(WEIGHTS_MISSING)
        Paced.held[test] = Paced.held.get(test, 0) + 1
        assert Paced.held[test] == 1, "the other one was to be let go first"
        self.test, self.factor = test, factor

    def __del__(self) -> None:
        if hasattr(self, "test"):
            Paced.held[self.test] -= 1

    def __call__(self, x: np.ndarray) -> np.ndarray:
        time.sleep(float(x.flat[0]))
        return self.factor * x


class Broken:
    def __init__(self) -> None:
        raise RuntimeError(WEIGHTS_MISSING)


def network(width: int = 32) -> Any:
    """Make the same network on every rank."""
    import torch

    torch.manual_seed(7)
    layers = [torch.nn.Linear(5, width), torch.nn.GELU(), torch.nn.Linear(width, width)]
    return torch.nn.Sequential(*layers, torch.nn.Tanh(), torch.nn.Linear(width, 3))


class Countdown(Backend):
    """Answers each request after as many steps as it says, one that says inf when told to."""

    def load(self) -> None:
        self.steps = Counting(1 + int(self.service.options.get("version", 1)))


class Counting(Steps):
    """Outputs: a multiple of the input, and how many requests were dropped so far.

    0 lets go who waits without end; -1 is refused; -2 makes the step fail.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.jobs: dict[int, list[Any]] = {}
        self.dropped = 0

    @property
    def busy(self) -> bool:
        return bool(self.jobs)

    @property
    def room(self) -> bool:
        return len(self.jobs) < 8

    def begin(self, key: int, client: int, inputs: tuple[np.ndarray, ...]) -> None:
        steps = inputs[0].flat[0]
        if steps == -1:
            raise ValueError("minus one")
        if steps == 0:
            for job in self.jobs.values():
                job[0] = min(job[0], 1)
        self.jobs[key] = [steps, inputs[0]]

    def step(self) -> dict[int, Any]:
        time.sleep(0.0005)
        for job in self.jobs.values():
            job[0] -= 1
        if any(job[0] == -3 for job in self.jobs.values()):
            raise ValueError("minus two")
        done = [key for key, job in self.jobs.items() if job[0] <= 0]
        inputs = {key: self.jobs.pop(key)[1] for key in done}
        counts = {key: np.full(x.shape, self.dropped, x.dtype) for key, x in inputs.items()}
        return {key: (self.factor * x, counts[key]) for key, x in inputs.items()}

    def drop(self, key: int) -> None:
        self.dropped += self.jobs.pop(key, None) is not None


class OneAtATime(Backend):
    """The same as `noted`, in steps, with room for one request."""

    def load(self) -> None:
        self.steps = One(**self.service.options)


class One(Steps):
    def __init__(self, seen: str, gate: str) -> None:
        self.seen, self.gate = seen, gate
        self.jobs: dict[int, np.ndarray] = {}

    @property
    def busy(self) -> bool:
        return bool(self.jobs)

    @property
    def room(self) -> bool:
        return not self.jobs

    def begin(self, key: int, client: int, inputs: tuple[np.ndarray, ...]) -> None:
        with open(self.seen, "a") as file:
            file.writelines(f"{value:g}\n" for value in inputs[0])
        self.jobs[key] = inputs[0]

    def step(self) -> dict[int, Any]:
        if not os.path.exists(self.gate):
            time.sleep(0.0005)
            return {}
        done, self.jobs = self.jobs, {}
        return {key: 2 * x + 1 for key, x in done.items()}

    def drop(self, key: int) -> None:
        del self.jobs[key]


class Versioned:
    """Answers with its version and its process; versions that are no number go wrong."""

    def __init__(self, version: str) -> None:
        if version == "missing":
            raise RuntimeError(WEIGHTS_MISSING)
        time.sleep(0.02 if version == "1" else 0.3)
        self.version = version

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        if self.version == "wide":
            return [np.hstack([x, x]), np.ones(len(x)), np.ones(len(x))]
        rows = np.ones(len(x))
        return [3 * x, rows * float(self.version), rows * os.getpid()]


class Sequences:
    """Adds up what each client has sent: a state between calls."""

    def __init__(self) -> None:
        self.sums: dict[int, float] = {}

    def __call__(self, x: np.ndarray, clients: np.ndarray) -> np.ndarray:
        sums = np.empty(len(x))
        for i, client in enumerate(clients):
            sums[i] = self.sums.get(int(client), 0.0) + x[i]
            self.sums[int(client)] = sums[i]
        return sums


class Once:
    """Can be loaded once in a process."""

    loaded = 0

    def __init__(self) -> None:
        Once.loaded += 1
        if Once.loaded > 1:
            raise MemoryError("it loads once")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return scale(x)


def labelled() -> Any:
    """A network with a table: labels beyond its end make it fail."""
    import torch
    from torch import nn

    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8))
            self.table = nn.Embedding(5, 8)

        def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return self.net(x) + self.table(label)

    torch.manual_seed(5)
    return Labelled()


def field(w, a):
    """Weigh a whole field; a negative weight makes it a wrong shape."""
    assert w.shape[0] == 3 and a.shape == ()
    return (np.zeros(5) if a < 0 else a * w.sum(0)), w.sum()


def scale_some(x):
    """Scale rows; there is no call without any."""
    assert len(x)
    return 2 * x


def cubes(version: str) -> Any:
    """Make a module of x^3 times its version; torch cannot follow version 0."""
    import torch

    class Cube(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            factor = float(version)
            return factor * x**3 if factor else x.detach()

    return Cube()


class Fragile:
    """Doubles its input; the first number of a row may make it raise, die or take long."""

    def __call__(self, x):
        first = x[:, 0]
        if (first == -1).any():
            raise ValueError("no good")
        if (first == -2).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (first == -3).any():
            time.sleep(0.3)
        return 2 * x


def twice(x: np.ndarray) -> np.ndarray:
    """Double the rows."""
    return 2 * x


def half() -> Any:
    """Make a network of images of any size, whose result has half of their height."""
    import torch
    from torch import nn

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.second = nn.Conv2d(4, 2, 3, stride=(2, 1), padding=1)

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.second(torch.tanh(self.first(image)))
            return y[:, :, :24], image.mean((2, 3))

    torch.manual_seed(5)
    return Half()


def grow(x: np.ndarray) -> np.ndarray:
    """Return as many columns as the largest value says, at least one."""
    return np.full((len(x), max(1, int(x.max()))), x.max())


def graph(nodes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Add to each node what its edges bring."""
    result = nodes.copy()
    np.add.at(result, edges[:, 1], nodes[edges[:, 0]])
    return result


def placed(x: np.ndarray) -> np.ndarray:
    """Answer the place of each row in the batch, how many rows that has, and their sum."""
    rows = len(x)
    place = np.arange(rows, dtype=np.float64)
    whole = np.full(rows, rows), np.full(rows, x.sum())
    return np.stack([place, *whole], axis=1)
