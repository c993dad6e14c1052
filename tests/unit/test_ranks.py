"""What is read of ranks while they run. The ranks are this process."""

import os
import signal
from contextlib import contextmanager, nullcontext

import pytest
from shown_job import FIELDS, RUN, a_job, found, page_of, placed, shown

from mpiserve.observe import ranks
from mpiserve.observe.ranks import COUNTERS, METRICS, Ranks
from mpiserve.tools import top


def test_ranks_are_found_and_read():
    with a_job():
        _, (client, head) = found(run=RUN)
    assert (client.rank, client.run, client.role) == (0, RUN, "simulation")
    assert client.counters["requests"] == 70 and client.lives and 1.9 < client.waits < 3.5
    (service,) = head.services
    assert service["name"] == "twice" and service["state"] == "busy"
    assert service["counters"]["rows"] == 640 and service["queue_requests"] == 3
    assert client.part.clients[0]["total"]["count"] == 3


def test_a_rank_that_has_closed_is_found_no_more_unless_it_is_kept():
    with a_job(closed=1):
        assert [rank.rank for rank in found(run=RUN)[1]] == [2]
        kept = found(run=RUN, kept=True)[1]
    assert [(rank.rank, rank.lives) for rank in kept] == [(0, False), (2, True)]


@contextmanager
def child(work):
    """A process that does something, says so, and waits for its end."""
    ready, done = os.pipe()
    pid = os.fork()
    if not pid:
        with work():
            os.write(done, b"x")
            signal.pause()
    try:
        os.read(ready, 1)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(done)


def test_what_a_rank_showed_last_can_be_read_when_it_has_ended():
    some = Ranks(RUN, kept=True)
    with child(a_job):
        some.find()
        assert [rank.lives for rank in some.read()] == [True, True]
    some.bury()
    client, head = some.read()
    assert not client.lives and not head.lives and client.waits == 0
    assert client.counters["requests"] == 70 and head.services[0]["counters"]["rows"] == 640


def test_a_rank_of_another_version_is_named():
    file = shown(page_of(0, version=2, library=b"9.9.9").tobytes())
    some, mine = found()
    os.close(file)
    assert not mine and (os.getpid(), "9.9.9") in [(o.pid, o.library) for o in some.foreign]
    seen = top.view(top.Look(0, []), top.Look(1, [], [(1, "9.9.9")]))
    assert "mpiserve 9.9.9" in "\n".join(top.lines(seen)) and top.NONE not in top.lines(seen)


def test_forked_children_are_no_ranks_of_their_own():
    with a_job(), child(nullcontext):
        some = Ranks(RUN)
        some.find()
        assert [rank.pid for rank in some.read()] == [os.getpid()] * 2


LAST = "/proc/sys/kernel/ns_last_pid"  # the kernel counts from there


@pytest.mark.skipif(not os.access(LAST, os.W_OK), reason="it takes a kernel's permission")
def test_nor_if_they_have_lower_numbers():
    with a_job():
        with open(LAST, "w") as last:
            last.write(str(max(300, os.getpid() - 200)))
        with child(nullcontext) as forked:
            assert forked < os.getpid()
            some, mine = found(run=RUN)
            assert [rank.pid for rank in mine] == [os.getpid()] * 2


def test_a_descriptor_that_is_closed_meanwhile_hides_no_other(monkeypatch):
    vanished, read = [], os.readlink

    def closed_meanwhile(path):
        if not vanished and str(path).startswith(f"/proc/{os.getpid()}/"):
            vanished.append(path)
            raise FileNotFoundError(path)
        return read(path)

    monkeypatch.setattr(os, "readlink", closed_meanwhile)
    with a_job():
        assert len(found(run=RUN)[1]) == 2
    assert vanished


class Torn(bytes):
    """A page whose first copy is made while the rank publishes: it has the descriptor alone."""

    copies = 0

    def __getitem__(self, where):
        Torn.copies += 1
        copy = bytearray(super().__getitem__(where))
        if Torn.copies == 1:
            late = METRICS.fields["fields"][1] + 40
            copy[late:] = bytes(len(copy) - late)
        return bytes(copy)


def test_services_are_whole_though_they_are_published_meanwhile():
    with a_job():
        some = Ranks(RUN)
        some.find()
        head = next(rank for rank in some._open.values() if rank._head()["services_fd"] >= 0)
        head.page = Torn(head.page[:])
        assert [service["name"] for service in head.read().services] == ["twice"]
    assert Torn.copies == 2


@pytest.mark.parametrize("page", [b"", b"msi-rank", b"\xff" * 4096])
def test_memory_that_is_no_rank_is_left_out(page):
    file = shown(page)
    assert not found(run=RUN)[1]
    os.close(file)


def test_the_states_and_counters_are_those_of_the_header():
    header = (ranks.Path(__file__).parents[2] / "csrc/include/mpiserve.h").read_text()
    declared = header.partition("typedef struct mpiserve_counters {")[2].partition("}")[0]
    names = [
        line.split("int64_t ")[1].split(";")[0]
        for line in declared.splitlines()
        if "int64_t " in line
    ]
    assert tuple(names) == COUNTERS
    states = header.partition("typedef enum mpiserve_state {")[2].partition("}")[0]
    assert [name.lower() in states.lower() for name in ranks.STATES] == [True] * 8


def test_a_library_that_shows_no_placement_is_read(monkeypatch):
    monkeypatch.delitem(FIELDS, "placement")
    with a_job():
        (service,) = found(run=RUN)[1][1].services
        assert service["placement"] is None and ranks.placements(RUN) == {}


def test_placements_are_found_by_the_name_of_their_service():
    with a_job(placement=placed(side=1, breaker=1, local_rows=5)):
        (one,) = ranks.placements(RUN)["twice"]
    assert (one["side"], one["breaker"], one["local_rows"]) == ("local", "open", 5)
