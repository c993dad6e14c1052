"""Models that ask for gradients while they infer: inference mode has none to give."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FAILED = re.compile(r"inference tensor|grad", re.IGNORECASE)  # of an error of torch
CALLS = 8  # that are watched: a model may ask on some batches alone


@contextmanager
def allowed() -> Iterator[None]:
    """Compute without gradients, but so that a model can ask for them inside."""
    import torch

    with torch.inference_mode(False), torch.no_grad():
        yield


def can_be_watched(module: Any) -> bool:
    """Whether calls of a module may be watched: one that is compiled would compile twice."""
    return all(type(part).__name__ != "OptimizedModule" for part in module.modules())


def watched(call: Callable[[], Any]) -> tuple[Any, bool]:
    """Call a model in inference mode, and see whether it asks for gradients.

    Not every model fails there: `torch.autograd.functional.jacobian` gives zeros.

    Returns:
        The result, which is wrong if it asks; and whether it asks.
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
