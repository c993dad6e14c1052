"""Broadcast the weights of a replica from the rank that reads them to the others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from mpiserve.errors import Code, ModelError
from mpiserve.mpi.requests import complete

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mpi4py import MPI

PIECE = 2**28  # bytes of a message: MPI counts them in an int

Manifest = list[tuple[str, tuple[int, ...], str]]


def manifest(module: torch.nn.Module) -> Manifest:
    """List the tensors of a module, with shapes and dtypes."""
    return [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in _tensors(module)]


def compare(module: torch.nn.Module, expected: Manifest) -> None:
    """Check that a module has the same tensors as that of the head.

    Raises:
        ModelError: If it has other tensors.
    """
    if different := set(manifest(module)) ^ set(expected):
        text = f"the module differs from that of the first rank in '{min(different)[0]}'"
        raise ModelError(Code.EMODEL, f"{text}: build the same module on every rank")


def share(comm: MPI.Comm, module: torch.nn.Module, seconds: float) -> None:
    """Broadcast the head's parameters and buffers. Collective; does not burn a core.

    Args:
        comm: The ranks; the head is rank 0.
        module: The module, with the same manifest on all ranks.
        seconds: The time-out of each piece.

    Raises:
        ModelError: If a rank did not take part.
    """
    for _, tensor in _tensors(module):
        whole = tensor.detach().contiguous()
        for piece in _pieces(whole):
            if not complete(comm.Ibcast(piece, root=0), seconds):
                text = f"the weights did not come from the first rank within {seconds:g} s"
                raise ModelError(Code.EMODEL, text)
        if whole.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(whole)


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all parameters and buffers, also those outside the state dict; tied ones once."""
    return chain(module.named_parameters(), module.named_buffers())


def _pieces(tensor: torch.Tensor) -> Iterator[np.ndarray]:
    import torch

    data = tensor.reshape(-1).view(torch.uint8).numpy()
    for begin in range(0, len(data), PIECE):
        yield data[begin : begin + PIECE]
