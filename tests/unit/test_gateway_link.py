"""Messages between the gateway's rank and its child, in pieces of any size."""

from __future__ import annotations

import asyncio
import socket

import numpy as np
import pytest

from mpiserve.gateway.link import HEAD, HELLO, Link, LinkError, pack, split


@pytest.fixture
def ends():
    mine, its = socket.socketpair()
    yield Link(mine, 1 << 20), its
    mine.close()
    its.close()


def test_messages_arrive_whole_whatever_their_pieces(ends):
    link, its = ends
    x = np.arange(100, dtype=np.float32)
    data = b"".join(map(bytes, pack({"m": "one"}, [x]) + pack({"m": "two"})))
    got = []
    for i in range(len(data)):
        its.send(data[i : i + 1])
        got += [*link.receive()]
    assert [table["m"] for table, _ in got] == ["one", "two"]
    (y,) = split(got[0][1], [[100]], [x.dtype])
    assert (x == y).all() and not got[1][1]


def test_what_does_not_fit_the_socket_is_sent_later(ends):
    link, its = ends
    other, x = Link(its, 1 << 24), np.arange(1 << 20, dtype=np.float64)
    link.send({"m": "large"}, [x])
    assert link.is_full
    got = []
    while not got:
        link.flush()
        got = [*other.receive()]
    assert (split(got[0][1], [[1 << 20]], [x.dtype])[0] == x).all()


@pytest.mark.parametrize(
    "data",
    [
        HEAD.pack(1 << 30, 0),
        HEAD.pack(2, 1 << 30) + b"{}",
        HEAD.pack(2, 0) + b"[]",
        HEAD.pack(3, 0) + b"{{{",
    ],
)
def test_what_is_no_message_ends_the_link(ends, data):
    link, its = ends
    its.send(data)
    with pytest.raises(LinkError):
        [*link.receive()]


def test_the_end_of_the_other_side_is_an_error(ends):
    link, its = ends
    its.close()
    with pytest.raises(LinkError):
        [*link.receive()]
    with pytest.raises(LinkError):
        link.send({"m": "x"})


def test_the_bytes_of_a_message_are_those_of_its_arrays():
    with pytest.raises(LinkError, match="12 bytes of tensors"):
        split(memoryview(bytes(12)), [[2]], [np.dtype(np.float32)])
    (empty,) = split(memoryview(b""), [[0, 3]], [np.dtype(np.float32)])
    assert empty.shape == (0, 3)


@pytest.fixture
def hub():
    pytest.importorskip("starlette")
    from mpiserve.gateway.hub import Hub

    return lambda its: Hub(its, 1, lambda: None)


async def told(hub, link):
    """Let a child hear what its rank sends, until it knows what there is, or that nobody is."""
    hub.start()
    while link.is_full:
        link.flush()
        await asyncio.sleep(0)
    await asyncio.wait_for(hub.known.wait(), 20)


def test_a_child_takes_a_long_list_from_its_rank(ends, hub):
    link, its = ends
    tokens = [["a" * 64, f"name{i}", 0.0, 1, ["a-service"] * 20, False] for i in range(10_000)]
    link.send({"m": HELLO, "services": [], "tokens": tokens})

    async def run():
        child = hub(its)
        await told(child, link)
        assert child.tokens == tokens and not child.drains

    asyncio.run(run())


def test_a_child_whose_rank_goes_at_once_does_not_wait(ends, hub):
    link, its = ends
    link.socket.close()

    async def run():
        child = hub(its)
        await told(child, link)
        assert child.drains

    asyncio.run(run())
