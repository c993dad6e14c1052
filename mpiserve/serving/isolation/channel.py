"""Memory that a rank and the child process of a model share: calls, messages, tensors."""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve._lib.handover import SIZE, Handover
from mpiserve.backends.arrays import dtype_of

if TYPE_CHECKING:
    from mpiserve.config import ServiceConfig, TensorConfig

RUN, CALL = 1, 2  # operations: a batch; a message
OK, FAILED = 0, 1  # codes of their ends
OWN, SEGMENT = 0, 1  # numbers of memories: of the child alone; of the rank, where its batches lie
MEMORIES = 4  # of a channel: calls, messages of each side, tensors
PAGE = mmap.PAGESIZE

Arrays = tuple[np.ndarray, ...]
Place = tuple[int, int]  # the number of a memory, and the bytes before a tensor


class Channel:
    """Calls between a rank and a child, the messages of calls, and room for tensors.

    Args:
        files: The descriptors of the memory, as `files` of the other side, and others.

    Attributes:
        more: The others.
    """

    def __init__(self, files: Sequence[int]) -> None:
        self.files, self.more = tuple(files[:MEMORIES]), tuple(files[MEMORIES:])
        calls, self._asks, self._answers, own = self.files
        self.calls = Handover(mmap.mmap(calls, SIZE))
        self.own = mmap.mmap(own, os.fstat(own).st_size)

    @staticmethod
    def create(service: ServiceConfig) -> Channel:
        """Make new memory, with room for the largest batch; pages that nobody uses cost nothing.

        Raises:
            OSError: If there is no room for it.
        """
        files: list[int] = []
        try:
            files.append(_memory("calls", SIZE))
            files += [os.memfd_create(f"mpiserve-{name}") for name in ("asks", "answers")]
            files.append(_memory("tensors", _places(service)[1]))
            return Channel(files)
        except BaseException:
            for file in files:
                os.close(file)
            raise

    def close(self) -> None:
        """Close the descriptors; memory is freed when no array uses it any more."""
        for file in self.files:
            os.close(file)
        self.files = ()

    def ask(self, message: Any) -> None:
        """Post a call with a message; for the rank."""
        self.calls.post(CALL, size=_write(self._asks, message))

    def run(self, rows: int, places: tuple[int, ...], shapes: Any = None) -> None:
        """Post a batch, with the shapes of its inputs if these are free; for the rank."""
        size = 0 if shapes is None else _write(self._asks, shapes)
        self.calls.post(RUN, rows, places, size)

    def asked(self) -> Any:
        """Read the message of the call; for the child."""
        return _read(self._asks, self.calls.size)

    def answer(self, code: int, message: Any) -> None:
        """End the call with a message; for the child."""
        self.calls.end(code, _write(self._answers, message))

    def answered(self) -> tuple[int, Any]:
        """Return the code and the message of the call that has ended; for the rank."""
        code, size = self.calls.answer
        return code, _read(self._answers, size) if size else None


class Room:
    """Where the tensors of a batch lie in the child's own memory.

    Args:
        service: The service.
        memory: The memory.
    """

    def __init__(self, service: ServiceConfig, memory: mmap.mmap) -> None:
        self._service = service
        self._memory = memory
        self._places = _places(service)[0]

    def places(self) -> list[Place]:
        """Return the place of each input, output, and of the clients."""
        return [(OWN, offset) for offset in self._places]

    def arrays(self, rows: int) -> tuple[Arrays, Arrays, np.ndarray]:
        """View the memory as inputs, outputs and clients of so many rows."""
        service = self._service
        tensors = (*service.inputs, *service.outputs)
        every = [
            view(self._memory, place, tensor, rows)
            for tensor, place in zip(tensors, self._places, strict=False)
        ]
        clients = np.ndarray((rows,), np.int32, self._memory, self._places[-1])
        n = len(service.inputs)
        return tuple(every[:n]), tuple(every[n:]), clients


def sizes(service: ServiceConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the bytes of a row of each input, and of each output."""
    inputs, outputs = service.inputs, service.outputs
    return tuple(one.row_bytes for one in inputs), tuple(one.row_bytes for one in outputs)


def view(memory: Any, offset: int, tensor: TensorConfig, rows: int) -> np.ndarray:
    """View memory as a tensor of so many rows; free dimensions are the largest."""
    return np.ndarray(tensor.dims(rows), dtype_of(tensor), memory, offset)


def reshaped(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """View the beginning of a dense array as one of another shape, of at most as many elements."""
    if array.shape == tuple(shape):
        return array
    return array.reshape(-1)[: prod(shape)].reshape(shape)


def _places(service: ServiceConfig) -> tuple[list[int], int]:
    """Return the offset of each tensor of the largest batch, and of its clients; and the end."""
    tensors = (*service.inputs, *service.outputs)
    places, end = [], 0
    for bytes_ in [*(tensor.row_bytes for tensor in tensors), np.dtype(np.int32).itemsize]:
        places.append(end)
        end += -(-service.max_batch_rows * bytes_ // PAGE) * PAGE
    return places, end


def _memory(name: str, size: int) -> int:
    """Make memory of a fixed size: a child that cut it would end its rank by SIGBUS."""
    file = os.memfd_create(f"mpiserve-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return file


def _write(file: int, message: Any) -> int:
    data = memoryview(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], done)
    return done


def _read(file: int, size: int) -> Any:
    data = bytearray()
    while len(data) < size:
        part = os.pread(file, size - len(data), len(data))
        if not part:
            raise EOFError(f"a message of {size} bytes has only {len(data)}")
        data += part
    return pickle.loads(data)
