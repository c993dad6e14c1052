"""What is read of ranks, and what Prometheus and `top` make of it. The ranks are this process."""

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from mpiserve.observe import exposition, ranks
from mpiserve.observe.parts import CLIENT, HEAD, LATE, PART, STEP
from mpiserve.observe.ranks import COUNTERS, METRICS, Ranks
from mpiserve.tools import metrics, top

RUN = -7  # of a session: any 64 bits
SECOND = 1_000_000_000

FIELDS = {  # of a service: where they lie in a record of this test
    "name": (0, 64),
    "state": (64, 8),
    **{
        name: (72 + 8 * i, 8)
        for i, name in enumerate(
            (
                "replica",
                "error",
                "spare",
                "max_batch_rows",
                "max_queue_rows",
                "state_ns",
                "launched_ns",
            )
            + ("ready_ns", "queue_rows", "batch_ns", "batch_rows")
        )
    },
    **{
        name: (160 + 4 * i, 4)
        for i, name in enumerate(
            ("queue_requests", "batch_open", "batch_requests", "held", "clients", "able", "asked")
        )
    },
    "counters": (192, 8 * len(COUNTERS)),
}
RECORD = 192 + 8 * len(COUNTERS)


def shown(data):
    """Show memory as a rank does: a file without a name."""
    fd = os.memfd_create("mpiserve-rank", os.MFD_CLOEXEC)
    os.write(fd, data.ljust(4096, b"\0"))
    return fd


def counters(**counts):
    return [counts.get(name, 0) for name in COUNTERS]


def page_of(rank, **values):
    page = np.zeros(1, METRICS)
    now = time.monotonic_ns()
    known = {"magic": b"msi-rank", "library": b"1.2.3", "version": 1, "bytes": METRICS.itemsize}
    known |= {"run": RUN, "rank": rank, "size": 3, "pid": os.getpid(), "host": b"here"}
    known |= {"part_fd": -1, "services_fd": -1, "opened": now - 5 * SECOND}
    known |= {"since_1970": time.time_ns() - now}
    for name, value in (known | values).items():
        page[0][name] = value
    return page


def service_of(name, **numbers):
    record = bytearray(RECORD)
    record[: len(name)] = name.encode()
    numbers = {"state": 2, "max_batch_rows": 64} | numbers
    for field, (at, size) in FIELDS.items():
        value = numbers.get(field, 0)
        if field == "counters":
            record[at : at + size] = np.array(value or counters(), "i8").tobytes()
        elif field != "name":
            record[at : at + size] = int(value).to_bytes(size, sys.byteorder, signed=size == 8)
    return bytes(record)


def part_of(rank, client_times=(), engine_times=()):
    head = np.zeros(1, PART)
    clients = np.zeros(int(bool(client_times)), CLIENT)
    heads = np.zeros(int(bool(engine_times)), HEAD)
    rest = np.zeros(3 * len(heads), LATE).tobytes() + np.zeros(4, STEP).tobytes()
    for record in (*clients, *heads):
        record["name"] = b"twice"
    for record, key, times in ((clients, "total", client_times), (heads, "engine", engine_times)):
        for nanoseconds in times:
            octave = nanoseconds.bit_length() - 1
            sub = nanoseconds >> (octave - 3) & 7
            record[0][key]["count"] += 1
            record[0][key]["sum"] += nanoseconds
            record[0][key]["most"] = max(record[0][key]["most"], nanoseconds)
            record[0][key]["buckets"][((octave - 2) << 3) + sub] += 1
    data = clients.tobytes() + heads.tobytes() + rest
    head[0]["magic"], head[0]["version"] = b"mpiserve", 1
    head[0]["bytes"], head[0]["size"], head[0]["rank"] = PART.itemsize + len(data), 3, rank
    head[0]["n_clients"], head[0]["n_heads"], head[0]["n_steps"] = len(clients), len(heads), 4
    return shown(head.tobytes() + data)


@contextmanager
def a_job(**values):
    """A simulation rank that waits, and an inference rank with a service and a batch."""
    now = time.monotonic_ns()
    counts = counters(requests=90, errors=5, rejected=2, cancelled=1, rows=640, batches=20)
    service = service_of(
        "twice",
        replica=1,
        counters=counts,
        queue_requests=3,
        queue_rows=12,
        batch_open=1,
        batch_ns=now - SECOND // 2,
        able=4,
        asked=3,
        clients=4,
        launched_ns=1,
        ready_ns=2 * SECOND + 1,
    )
    files = [shown(service)]
    files += [part_of(0, client_times=[5_000, 9_000, 4_000_000]), part_of(2, engine_times=[3_000])]
    client = page_of(0, part_fd=files[1], waits_since=now - 2 * SECOND, waits_seen=now + SECOND)
    client[0]["waits_for"] = 2
    client[0]["counters"] = counters(requests=70, errors=3, fallbacks=2)
    head = page_of(2, role=1, part_fd=files[2], services_fd=files[0], n_services=1)
    head[0]["record_bytes"], head[0]["n_fields"] = RECORD, len(FIELDS)
    for i, (name, (at, size)) in enumerate(FIELDS.items()):
        head[0]["fields"][i] = (name.encode(), at, size)
    for name, value in values.items():
        client[0][name] = value
    files += [shown(client.tobytes()), shown(head.tobytes())]
    try:
        yield files
    finally:
        for file in files:
            os.close(file)


def found(**how):
    some = Ranks(**how)
    some.find()
    mine = [rank for rank in some.read() if rank.pid == os.getpid()]
    return some, mine


def name_of(sample):
    """As it is in the text: this parser calls Triton's counters as it would."""
    return sample.name.removesuffix("_total") if sample.name.startswith("nv_") else sample.name


def samples(text):
    return {
        (name_of(sample), tuple(sorted(sample.labels.items()))): sample.value
        for family in parsed(text)
        for sample in family.samples
    }


def value(known, name, **labels):
    fitting = [
        number
        for (one, has), number in known.items()
        if one == name and set(labels.items()) <= set(has)
    ]
    assert len(fitting) == 1, (name, labels, fitting)
    return fitting[0]


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


# ---- Prometheus


def test_the_text_is_what_prometheus_reads():
    with a_job():
        known = samples(exposition.text(found(run=RUN)[1]))
    assert value(known, "mpiserve_client_requests_total", rank="0") == 70
    assert value(known, "mpiserve_requests_total", service="twice", replica="1") == 90
    assert value(known, "mpiserve_errors_total", reason="rejected") == 2
    assert value(known, "mpiserve_errors_total", reason="other") == 2
    assert value(known, "mpiserve_replica_state", state="busy") == 1
    assert value(known, "mpiserve_replica_state", state="ready") == 0
    assert value(known, "nv_inference_request_success", model="twice") == 85
    assert value(known, "nv_inference_request_failure", reason="REJECTED") == 2
    assert value(known, "nv_inference_count", model="twice") == 640
    assert value(known, "nv_inference_exec_count") == 20
    assert value(known, "nv_inference_pending_request_count") == 3
    assert value(known, "mpiserve_bootstrap_seconds_sum") == 2
    assert value(known, "mpiserve_inference_seconds_count") == 1


def test_histograms_count_what_is_below_their_limits():
    with a_job():
        known = samples(exposition.text(found(run=RUN)[1]))
    name = "mpiserve_response_seconds"
    limits = {
        float(dict(labels)["le"]): number
        for (one, labels), number in known.items()
        if one == f"{name}_bucket"
    }
    assert limits[4.096e-6] == 0 and limits[8.192e-6] == 1 and limits[16.384e-6] == 2
    assert limits[2.097152e-3] == 2 and limits[4.194304e-3] == 3 and limits[float("inf")] == 3
    assert value(known, f"{name}_count") == 3
    assert value(known, f"{name}_sum") == pytest.approx(4.014e-3)


def test_names_of_services_cannot_break_the_text():
    name = 'a"b\\c\nd'
    family = exposition.Family("mpiserve_up", "gauge", "One.")
    family.add({"service": name}, 1)
    (read,) = parsed("\n".join(family.lines()) + "\n")
    assert read.samples[0].labels == {"service": name}


def test_a_file_is_written_whole_for_each_job(tmp_path):
    with a_job():
        metrics._write(found(run=RUN)[0], tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == "mpiserve-fffffffffffffff9-0.prom"
    assert value(samples(file.read_text()), "mpiserve_client_requests_total", rank="0") == 70


@contextmanager
def serving(**how):
    server = metrics._Server(**how)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(url, token=""):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_a_port_asks_for_its_token():
    with a_job(), serving(address=("127.0.0.1", 0), family=socket.AF_INET, run=RUN) as server:
        server.token = b"a secret of the user"
        host, port = server.server_address
        assert host == "127.0.0.1"
        url = f"http://127.0.0.1:{port}/metrics"
        assert get(url)[0] == get(url, "another")[0] == 401
        assert get(url + "x", "a secret of the user")[0] == 404
        status, text = get(url, "a secret of the user")
    assert status == 200
    assert value(samples(text), "mpiserve_client_requests_total", rank="0") == 70


def test_a_client_that_says_nothing_does_not_stay(monkeypatch):
    monkeypatch.setattr(metrics, "PATIENCE", 0.2)
    where = {"address": ("127.0.0.1", 0), "family": socket.AF_INET}
    with (
        serving(**where, run=RUN) as server,
        socket.create_connection(server.server_address) as silent,
    ):
        silent.settimeout(20)
        silent.sendall(b"GET /metr")
        assert silent.recv(1) == b""


def test_only_this_user_can_connect_to_a_socket(tmp_path):
    path = str(tmp_path / "s")
    with metrics._bound_socket(path, RUN) as server:
        assert os.stat(path).st_mode & 0o777 == 0o600
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with a_job(), socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        server.shutdown()
        thread.join()
    assert value(samples(text.partition("\r\n\r\n")[2]), "mpiserve_up", rank="0") == 1
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("mode", "token", "why"),
    [(0o644, "x" * 32, "chmod 600"), (0o600, "short", "at least 16"), (None, "", "No such file")],
)
def test_a_token_that_is_none_is_refused(tmp_path, capsys, mode, token, why):
    file = tmp_path / "token"
    if mode is not None:
        file.write_text(token)
        file.chmod(mode)
    assert metrics.listen(path=None, port=0, token_file=str(file), run=None) == 1
    assert why in capsys.readouterr().err


def test_a_port_without_a_token_is_refused(capsys):
    assert metrics.listen(path=None, port=0, token_file=None, run=None) == 1
    assert "--token-file" in capsys.readouterr().err


# ---- top


def two_looks():
    with a_job():
        before = top.Look(0.0, found(run=RUN)[1])
        now = found(run=RUN)[1]
    now[0] = replace(now[0], head=now[0].head.copy())
    now[0].head["counters"][0] += 50
    counts = now[1].services[0]["counters"]
    counts["requests"] += 40
    counts["batches"] += 10
    counts["rows"] += 320
    return top.view(before, top.Look(2.0, now))


def test_top_says_what_happened_between_two_looks():
    (job,) = two_looks()["jobs"]
    (service,), (client,) = job["services"], job["simulation"]
    (replica,) = service["replicas"]
    assert client["requests_per_s"] == 25 and client["waits_for"] == 2
    assert service["requests_per_s"] == 20 and replica["batches_per_s"] == 5
    assert replica["rows_a_batch"] == 32 and replica["fill"] == 0.5
    assert replica["state"] == "busy" and 0.4 < replica["batch_seconds"] < 5
    assert service["response"]["count"] == 3 and 8e-6 < service["response"]["p50"] < 1e-5


def test_top_writes_lines_without_a_terminal_and_tables_with_one():
    seen = two_looks()
    text = "\n".join(top.lines(seen))
    assert "twice/1 rank 2 busy: 20 requests/s, batches of 32 rows (50 %), queue 3" in text
    assert "rank 0 2" in text and "for rank 2" in text
    json.dumps(seen)
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as text:
        console.print(top.tables(seen))
    drawn = text.get()
    assert "twice" in drawn and "3/4" in drawn and "50 %" in drawn


def test_top_says_that_there_is_no_job():
    assert top.lines(top.view(top.Look(0, []), top.Look(1, []))) == [top.NONE]


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
