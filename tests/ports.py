"""Example 11: what its programs must print, computed by the same models in this process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from languages import EXAMPLES

EXAMPLE = EXAMPLES / "11_moving_in"
Answers = dict[str, list[np.ndarray]]  # of each rank, by name


def write_models(folder: Path) -> None:
    """Write the TorchScript files, as `python make_models.py` does."""
    spec = importlib.util.spec_from_file_location("make_models", EXAMPLE / "make_models.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(folder)


def printed(text: str, ranks: int = 2) -> Answers:
    """Read lines of a name, a rank and numbers."""
    found: Answers = {}
    for line in text.splitlines():
        name, rank, *numbers = line.split()
        own = found.setdefault(name, [np.empty(0)] * ranks)
        assert not own[int(rank)].size, f"{name} twice"
        own[int(rank)] = np.array(numbers, float)
    return found


def check(
    text: str,
    expected: Callable[[Any, int], dict[str, Any]],
    folder: Path,
    ranks: int = 2,
    within: float = 1e-5,
) -> None:
    """Compare what the ranks of a program have printed with what torch computes here.

    A batch has the rows of all ranks, and rounds in another order: 1e-5 is for float32.
    """
    answers = printed(text, ranks)
    for rank in range(ranks):
        right = expected(partial(load, folder), rank)
        assert sorted(right) == sorted(answers)
        for name, value in right.items():
            flat = np.concatenate([np.ravel(part) for part in value])
            near = {"rtol": within, "atol": within / 10}
            np.testing.assert_allclose(answers[name][rank], flat, **near, err_msg=name)


def load(folder: Path, name: str) -> Any:
    """Return a model of the example as a function of torch tensors."""
    return torch.jit.load(str(folder / f"{name}.pt"))


def ftorch(models: Any, rank: int) -> dict[str, Any]:
    """What from_ftorch.f90 prints."""
    x = rank + np.arange(1, 7, dtype=np.float32).reshape(3, 2).T
    shift, mean = arrays(models("shift")(tensor(x)))
    found = {"tensor": [shift, shift], "mean": [mean, mean]}
    pixels = (7 * np.arange(1, 3 * 24 * 32 + 1) + rank) % 23 / 16
    scores = arrays(models("image")(tensor(pixels.reshape(1, 3, 24, 32))))[0][0]
    powers = np.exp(scores)
    found |= {"image": [scores, scores]}
    found |= {"likeliest": [scores.argmax() + 1, powers.max() / powers.sum()]}
    found["loop"] = [loop(models("column"), rank, 20)]
    a = rank + torch.arange(1.0, 5.0).reshape(1, 4)
    found["several"] = arrays(models("pair")(a, 0.5 - a))
    fields = (rank + np.arange(1, 31)).reshape(5, 3, 2).T / 16  # in the order of Fortran
    multi = arrays(models("column")(tensor(fields)))
    found |= {"one": [multi[0][0, 0]], "batch": [multi[0][:, 0]]}
    return found | {"multi": multi, "fields": multi} | gradients(models, rank)


def loop(column: Any, rank: int, steps: int) -> np.ndarray:
    state = 0.25 * (rank + torch.arange(1.0, 6.0))
    for _ in range(steps):
        state = state + 0.125 * column(state).detach()
    return state.numpy()


def gradients(models: Any, rank: int) -> dict[str, Any]:
    a = (rank + torch.tensor([2.0, 3.0])).requires_grad_()
    b = (rank + torch.tensor([6.0, 4.0])).requires_grad_()
    q = models("cubic")(a, b)
    q.backward(torch.ones(2))
    assert torch.equal(a.grad, 9 * a**2) and torch.equal(b.grad, -2 * b)
    state = (0.25 * (rank + torch.arange(1.0, 6.0))).requires_grad_()
    tendency = models("column")(state)
    tendency.backward(torch.ones(5))
    found = {"cubic": arrays((q, a.grad, b.grad))}
    return found | {"backward": arrays((tendency, state.grad))}


def smartredis(models: Any, rank: int) -> dict[str, Any]:
    """What from_smartredis.f90 and .py print."""
    i = np.arange(1, 3 * 24 * 32 + 1)
    pixels = np.stack([(7 * i + rank + 10 * number) % 128 for number in range(4)])
    images = (pixels.astype(np.float32) / np.float32(127.5) - 1).reshape(4, 3, 24, 32)
    (scores,) = arrays(models("image")(tensor(images)))
    return {"one": [scores[0]], "several": [scores[1:]]}


def phydll(models: Any, rank: int) -> dict[str, Any]:
    """What from_phydll.f90 and .py print."""
    each, second = (fields(models("closure"), rank, every) for every in (1, 2))
    return {"blocking": each, "overlapped": each, "second": second}


def fields(closure: Any, rank: int, every: int) -> list[np.ndarray]:
    u = (rank + torch.arange(1, 8 + rank, dtype=torch.float64)) / 16
    v = 1 - u
    sources = [u, v]
    for step in range(6):
        if step % every == 0:
            sources = [source.detach() for source in closure(u, v)]
        u, v = u + 0.125 * sources[0], v + 0.125 * sources[1]
    return [u.numpy(), v.numpy()]


def triton(models: Any, rank: int) -> dict[str, Any]:
    """What from_triton.py prints, of any rank; triton_client.py says "outside"."""
    images = np.arange(2 * 3 * 24 * 32) % 23 / 16
    return {"inside": arrays(models("image")(tensor(images.reshape(2, 3, 24, 32))))}


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def arrays(result: Any) -> list[np.ndarray]:
    """Return a result of a model as arrays, one or several."""
    results = result if isinstance(result, (tuple, list)) else (result,)
    return [value.detach().numpy() for value in results]
