"""Detect models that compute gradients while they infer, which inference mode does not allow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FAILED = re.compile(r"inference tensor|grad", re.IGNORECASE)  # in error texts of torch
CALLS = 8  # to watch: a model may compute gradients only on some batches


@contextmanager
def allowed() -> Iterator[None]:
    """Disable gradients, but let the model enable them inside."""
    import torch

    with torch.inference_mode(False), torch.no_grad():
        yield


def can_be_watched(module: Any) -> bool:
    """Return whether calls of a module may be watched: a compiled one would compile twice."""
    return all(type(part).__name__ != "OptimizedModule" for part in module.modules())


def watched(call: Callable[[], Any]) -> tuple[Any, bool]:
    """Call a model in inference mode, and detect whether it computes gradients.

    Not every such model fails there: `torch.autograd.functional.jacobian` returns zeros.

    Returns:
        The result, which is wrong if the model computes gradients, and whether it does.
    """
    from torch.overrides import TorchFunctionMode

    class Watch(TorchFunctionMode):
        asked = False

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = getattr(function, "__name__", "")
            turned_on = name == "_set_grad_enabled" and args == (True,)
            self.asked = self.asked or turned_on or name == "_make_dual"
            return function(*args, **(kwargs or {}))

    with Watch() as watch:
        result = call()
    return result, watch.asked
