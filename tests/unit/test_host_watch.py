import socket

import pytest

from mpiserve.mpi import host_watch
from mpiserve.mpi.host_watch import Peer, Watcher


@pytest.mark.parametrize(("value", "seconds"), [("5", 5.0), ("0", 0.0), ("x", 30.0), ("-1", 0.0)])
def test_the_limit_is_read_from_the_environment(monkeypatch, value, seconds):
    monkeypatch.setenv("MPISERVE_LOST", value)
    assert host_watch.limit() == seconds


def test_connections_within_the_host_are_not_watched():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        assert Watcher(3.0).peers() == []
        client.close()
        accepted.close()


@pytest.mark.parametrize(
    ("peer", "lost"),
    [(Peer("n2", 1.0, False), False), (Peer("n2", 4.0, False), True), (Peer("n2", 0, True), True)],
)
def test_a_silent_or_broken_connection_is_a_lost_host(monkeypatch, peer, lost):
    watcher = Watcher(3.0)
    monkeypatch.setattr(watcher, "peers", lambda: [peer])
    text = watcher.lost()
    assert (text is not None) == lost
    if text:
        assert text.startswith("no sign of life from host n2 for 3 s (MPISERVE_LOST)")


def test_a_broken_connection_is_no_lost_host_where_ranks_may_die(monkeypatch):
    watcher = Watcher(3.0, ranks_may_die=True)
    monkeypatch.setattr(watcher, "peers", lambda: [Peer("n2", 0, True)])
    assert watcher.lost() is None
    monkeypatch.setattr(watcher, "peers", lambda: [Peer("n2", 4.0, False)])
    assert watcher.lost()
