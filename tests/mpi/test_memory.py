"""The memory of a head on its node: others can map it, and too little is an error for all."""

from __future__ import annotations

import mmap
import os
import resource

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, numbers, scaling

from mpiserve._lib import core
from mpiserve.config.tensor import Tensor
from mpiserve.errors import ClosedError, Code, Error

ROWS = 500  # too many for a slot
SHAPE = {"dtype": "float64", "shape": (-1, 4)}
MOST = 4096  # bytes of a file: less than what a head keeps of its services


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    """Let no rank use rma, whose memory is MPI's."""
    monkeypatch.setenv("MPISERVE_TRANSPORT", "shared")


def mapped(session: core.Session) -> np.ndarray:
    """Map the memory of an inference rank once more, as another process would."""
    ((fd, _, size),) = session.segments()
    own = os.open(f"/proc/{os.getpid()}/fd/{fd}", os.O_RDWR)
    memory = mmap.mmap(own, size)
    os.close(own)
    return np.frombuffer(memory, np.uint8)


def through(session: core.Session, memory: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Return an array of a batch as it lies in the other mapping."""
    place = session.locate(array)
    assert place is not None and place[0] == 0
    return memory[place[1] :][: array.nbytes].view(array.dtype).reshape(array.shape)


def serve(world) -> dict[bool, int]:
    """Answer 2 x through another mapping; the number of batches, by whether they were in place."""
    seen = {True: 0, False: 0}
    session = core.Session(world.comm, INFERENCE)
    tensors = {side: [Tensor(name=side[0], **SHAPE)] for side in ("inputs", "outputs")}
    session.publish({"name": "twice", "max_batch_rows": 2 * ROWS, "max_delay_us": 1000, **tensors})
    memory = mapped(session)
    assert session.locate(np.zeros(3)) is None
    while True:
        try:
            batch = session.next_batch(1.0)
        except ClosedError:
            break
        if batch is not None:
            x, y = (through(session, memory, side[0]) for side in (batch.inputs, batch.outputs))
            y[:] = 2 * x
            seen[batch.in_place] += 1
            session.reply(batch.outputs)
    session.close()
    return seen


@pytest.mark.roles(simulation=2, inference=1)
def test_all_batches_lie_in_memory_that_another_process_can_map(world):
    if world.role == INFERENCE:
        seen = serve(world)
        assert seen[True] > 0 and seen[False] > 0
        return

    session = core.Session(world.comm, "simulation")
    service = session.service("twice")
    for rows in [1, 3, ROWS] * 5:
        x = numbers(rows, 4, start=world.comm.rank)
        np.testing.assert_array_equal(service(x), 2 * x)
    y = service.empty_output(ROWS)
    service(numbers(ROWS, 4), out=y)
    session.close()
    np.testing.assert_array_equal(y, 2 * numbers(ROWS, 4))  # readable after close


@pytest.mark.roles(simulation=2, inference=2)
def test_too_little_memory_is_an_error_on_every_rank(world):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    second = [rank for rank, role in enumerate(world.roles) if role == INFERENCE][1]
    if world.comm.rank == second:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, hard))
    text = rf"\d+ bytes of memory are needed and {MOST} bytes are free \(ulimit -f\)"
    try:
        with pytest.raises(Error, match=text) as caught:
            couple(world, {"scale": scaling() | {"replicas": 2}}, lambda session: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == Code.ENOMEM
    assert caught.value.text.startswith(f"rank {second}: ") == (world.comm.rank != second)
    assert "Give the job more memory" in caught.value.text

    def simulate(session):
        np.testing.assert_array_equal(
            session.service("scale")(numbers(9, 4)), 2 * numbers(9, 4) + 1
        )

    couple(world, {"scale": scaling() | {"replicas": 2}}, simulate)
