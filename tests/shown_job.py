"""A job of two ranks that are this process: what they show to other programs."""

import os
import sys
import time
from contextlib import contextmanager

import numpy as np
from prometheus_client.parser import text_string_to_metric_families as parsed

from mpiserve.observe.parts import CLIENT, HEAD, LATE, PART, STEP, VERSION
from mpiserve.observe.ranks import COUNTERS, METRICS, PLACEMENT, Ranks

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
    "placement": (192 + 8 * len(COUNTERS), 8 * len(PLACEMENT)),
}
RECORD = 192 + 8 * (len(COUNTERS) + len(PLACEMENT))


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
        if field in ("counters", "placement"):
            record[at : at + size] = np.array(value or [0] * (size // 8), "i8").tobytes()
        elif field != "name":
            record[at : at + size] = int(value).to_bytes(size, sys.byteorder, signed=size == 8)
    return bytes(record)


def placed(**values):
    """The numbers of a service with a local and a remote model."""
    return [values.get(name, 0) for name in PLACEMENT]


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
    head[0]["magic"], head[0]["version"] = b"mpiserve", VERSION
    head[0]["bytes"], head[0]["size"], head[0]["rank"] = PART.itemsize + len(data), 3, rank
    head[0]["n_clients"], head[0]["n_heads"], head[0]["n_steps"] = len(clients), len(heads), 4
    return shown(head.tobytes() + data)


@contextmanager
def a_job(placement=None, counts=None, **values):
    """A simulation rank that waits, and an inference rank with a service and a batch."""
    now = time.monotonic_ns()
    known = {"requests": 90, "errors": 5, "rejected": 2, "cancelled": 1, "rows": 640, "batches": 20}
    service = service_of(
        "twice",
        replica=1,
        counters=counters(**known | (counts or {})),
        placement=placement,
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
