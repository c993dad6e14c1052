"""A model that dies, hangs or lies costs the request that makes it do so; its rank lives on."""

from __future__ import annotations

import os
import re

import pytest
from coupling import RUN

# Whatever a model may do, by the number that makes it do so, in any row of a batch.
MODELS = """\
import ctypes
import os
import signal
import subprocess
import sys
import time

import numpy as np


class Unprintable(Exception):
    def __str__(self):
        return self.args[5]


def stop_for_ever():
    os.kill(os.getpid(), signal.SIGSTOP)


def grandchild():
    child = subprocess.Popen(["sleep", "100"], start_new_session=True)
    with open("grandchildren.txt", "a") as file:
        print(child.pid, file=file)
    os.abort()


def fail(error):
    raise error


def scribble(x):
    # To all memory of the rank that can be written to.
    for line in open("/proc/self/maps"):
        where, access, at, *_, name = line.split(maxsplit=5)
        if name.startswith("/memfd:mpiserve ") and access == "rw-s":
            begin, end = (int(number, 16) for number in where.split("-"))
            ctypes.memset(begin, 0xFF, end - begin)
            scribbled.append(end - begin)
    if not scribbled:
        raise ValueError("no memory of the rank is here")
    return 2 * x


scribbled = []
KINDS = [
    lambda x: ctypes.string_at(0),
    lambda x: os._exit(7),
    lambda x: os.kill(os.getpid(), signal.SIGKILL),
    lambda x: os.abort(),
    lambda x: signal.raise_signal(signal.SIGTERM),
    lambda x: time.sleep(1000),
    lambda x: stop_for_ever(),
    lambda x: np.ones(1 << 29),
    lambda x: fail(ValueError("no good")),
    lambda x: sys.exit(3),
    lambda x: fail(KeyboardInterrupt("of the model")),
    lambda x: fail(Unprintable("no")),
    lambda x: x[:, :1],
    lambda x: x.astype(np.float64),
    lambda x: "None",
    lambda x: grandchild(),
    lambda x: scribble(x),
]


def deadly(x):
    for kind in x[:, 0]:
        if kind > 0:
            result = KINDS[int(kind) - 1](x)
            return None if isinstance(result, str) else result
    return 2 * x


def fragile(x):
    if (x > 0).any():
        os._exit(9)
    return 2 * x


class Gated:
    # It is not loaded again before a file is there.
    def __init__(self):
        while os.path.exists("crashed") and not os.path.exists("gate"):
            time.sleep(0.01)

    def __call__(self, x):
        if (x > 0).any():
            open("crashed", "w").close()
            os._exit(9)
        return 2 * x


class Segfault:
    def __init__(self):
        ctypes.string_at(0)


class Hangs:
    def __init__(self):
        time.sleep(1000)


class Exits:
    def __init__(self):
        os._exit(11)


def small(x):
    return 2 * x
"""

TABLE = """
[service.{name}]
backend = "python"
model = "models:{model}"
inputs = [{{ name = "x", dtype = "float32", shape = [-1, 3] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, 3] }}]
rows = "independent"
input_memory = "view"
warmup = false
max_batch_rows = 256
max_delay_us = 100000
{settings}
"""

SERVICES = {
    "deadly": ("deadly", "timeout_s = 1\nmemory_bytes = 1_000_000_000\nrestarts = 100"),
    "fragile": ("fragile", "restarts = 1"),
    "small": ("small", ""),
    "segfault": ("Segfault", ""),
    "hangs": ("Hangs", "load_timeout_s = 1"),
    "exits": ("Exits", ""),
}

# Each of three ranks asks at once; rank 1 asks for the worst.
SIMULATION = """\
import mpiserve
import numpy as np


def ask(name, value):
    service = session.service(name)
    session.comm.Barrier()
    x = np.full((1 + 30 * rank, 3), value, np.float32)
    try:
        assert (service(x, timeout=60) == 2 * x).all(), (name, value)
        return ""
    except mpiserve.ModelError as error:
        return str(error)


with mpiserve.open() as session:
    rank = session.comm.rank
    for name in ("segfault", "hangs", "exits"):
        try:
            session.service(name)
            raise AssertionError(name)
        except mpiserve.ModelError as error:
            if rank == 0:
                print(f"{name}: {error}", flush=True)
    for kind in range(1, 17):
        said = ask("deadly", kind if rank == 1 else -kind)
        assert bool(said) == (rank == 1), (kind, said)
        if said:
            print(f"deadly {kind}: {said}", flush=True)
        assert not ask("small", 1 + rank)
        assert not ask("deadly", -1)
    for _ in range(3):
        assert not ask("deadly", 17)
    for time in range(3):
        said = ask("fragile", 1 if rank == 1 else -1)
        if rank == 1:
            print(f"fragile {time}: {said}", flush=True)
    if rank == 0:
        session.reload("fragile", timeout=60)
    assert not ask("fragile", -1)
    print(f"rank {rank} is right", flush=True)
"""

LATE = "the model's process took over timeout_s = 1 s on this batch: it was killed"
SAID = {
    1: r"the model's process was killed by SIGSEGV \(Segmentation fault\) on this batch",
    2: r"the model's process has ended with status 7 on this batch",
    3: r"the model's process was killed by SIGKILL on this batch: the machine may lack memory",
    4: r"the model's process was killed by SIGABRT \(Aborted\)",
    5: r"the model's process was killed by SIGTERM \(Terminated\)",
    6: LATE,
    7: LATE,
    8: r"MemoryError: .*\(memory_bytes = 1000000000\)",
    9: r"ValueError: no good",
    10: r"SystemExit: 3",
    11: r"KeyboardInterrupt: of the model",
    12: r"Unprintable: \(its text cannot be read: IndexError\)",
    13: r"output 'y': expected float32 \[31, 3\], got float32 \[31, 1\]",
    14: r"output 'y': expected float32 \[31, 3\], got float64 \[31, 3\]",
    15: r"output 'y': expected float32 \[31, 3\], got object \[\]",
    16: r"the model's process was killed by SIGABRT",
}
LOADING = {
    "segfault": r"was killed by SIGSEGV \(Segmentation fault\) while it loaded the model",
    "hangs": r"took over load_timeout_s = 1 s while it loaded the model .*: it was killed",
    "exits": r"has ended with status 11 while it loaded the model",
}


def alive(pid):
    """Tell whether a process runs: one that has ended may wait for its parent to see it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def models(tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    tables = [
        TABLE.format(name=name, model=model, settings=settings)
        for name, (model, settings) in SERVICES.items()
    ]
    pool = f"[pool.all]\nservices = {list(SERVICES)}\n"
    (tmp_path / "c.toml").write_text(pool + "".join(tables))
    (tmp_path / "sim.py").write_text(SIMULATION)
    return tmp_path


def test_only_the_guilty_request_fails_however_its_model_dies(mpiexec, models):
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"], timeout=150)

    for rank in range(3):
        assert f"rank {rank} is right" in done.stdout
    for kind, text in SAID.items():
        assert re.search(f"^deadly {kind}: {text}", done.stdout, re.M), (kind, text)
    for name, text in LOADING.items():
        assert re.search(f"^{name}: .*{text}", done.stdout, re.M), name
    assert "fragile 0: the model's process has ended with status 9" in done.stdout
    assert "fragile 2: this replica is given up after restarts = 1 within 60 s" in done.stdout
    assert done.returncode == 1  # of a rank that could not load all of its models
    for pid in (models / "grandchildren.txt").read_text().split():
        assert not alive(pid), pid
    for number in re.findall(r"process (\d+)", done.stderr):
        assert not os.path.exists(f"/proc/{number}"), number


ENTERS = """\
import os
from contextlib import contextmanager
from pathlib import Path

import mpiserve


class Enters(mpiserve.Backend):
    def run(self, inputs):
        return 2 * inputs[0]

    @contextmanager
    def serving(self):
        if not Path("entered").exists():
            Path("entered").touch()
            os._exit(12)
        yield
"""
ASKS = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    x = np.ones((2, 3), np.float32)
    assert (session.service("enters")(x, timeout=30) == 2 * x).all()
    print("answered", flush=True)
"""


def test_a_model_that_dies_as_it_enters_what_it_needs_starts_again(mpiexec, tmp_path):
    table = TABLE.format(name="enters", model="", settings="")
    table = table.replace('backend = "python"\nmodel = "models:"', 'backend = "models:Enters"')
    (tmp_path / "models.py").write_text(ENTERS)
    (tmp_path / "c.toml").write_text(table)
    (tmp_path / "sim.py").write_text(ASKS)
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], timeout=60)
    assert done.returncode == 0
    assert "answered" in done.stdout
    assert "has ended with status 12 while it entered what it needs to serve" in done.stderr


TWO = """\
from pathlib import Path

import mpiserve
import numpy as np

with mpiserve.open() as session:
    service, x = session.service("gated"), np.full((2, 3), -1, np.float32)
    try:
        service(-x, timeout=60)
        raise AssertionError("answered")
    except mpiserve.ModelError as error:
        assert "has ended with status 9" in str(error), error
    for _ in range(30):
        assert (service(x, timeout=30) == 2 * x).all()
    Path("gate").touch()
    print("the other replica has answered", flush=True)
"""


def test_another_replica_answers_while_a_process_is_started_again(mpiexec, models):
    table = TABLE.format(name="gated", model="Gated", settings="replicas = 2")
    (models / "c.toml").write_text(table)
    (models / "sim.py").write_text(TWO)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=100)
    assert "the other replica has answered" in done.stdout
    assert done.returncode == 0
