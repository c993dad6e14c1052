"""What user code raises costs the request that caused it, and the log says what is waited for."""

from __future__ import annotations

import pytest
from coupling import PYTHON, RUN, SERVE, write

# Whatever a model may raise, by the number that makes it do so.
MODELS = """\
import asyncio
from contextlib import contextmanager
from pathlib import Path

import mpiserve
import numpy as np
from mpiserve.backends.base import Steps


class Unprintable(Exception):
    def __str__(self):
        return self.args[5]


class Interrupts(Exception):
    def __str__(self):
        raise KeyboardInterrupt


def looped():
    first, second = ValueError("loop"), ValueError("two")
    first.__cause__, second.__cause__ = second, first
    return first


def exhausted():
    raise StopIteration
    yield


ERRORS = [
    lambda: Unprintable("no"),
    Interrupts,
    lambda: ValueError("a\\udc80b\\0c" + "\\N{SNOWMAN}" * 1_000_000),
    asyncio.CancelledError,
    lambda: KeyboardInterrupt("of the model"),
    GeneratorExit,
    lambda: type("Base", (BaseException,), {})("base"),
    looped,
    lambda: StopIteration("stop"),
    lambda: ExceptionGroup("both", [ValueError("x"), OSError("y")]),
    lambda: SystemExit(Unprintable("no")),
    lambda: RecursionError("deep"),
    MemoryError,
]


def check(x):
    bad = x[x[:, 0] > 0, 0]
    if len(bad) and bad[0] > len(ERRORS):
        list(exhausted())
    if len(bad):
        raise ERRORS[int(bad[0]) - 1]()


def guilty(x):
    check(x)
    return 2 * x


def named(x, clients):
    check(x)
    return np.repeat(clients[:, None], x.shape[1], 1).astype(np.float32)


class Chunked(mpiserve.Backend):
    def run_batch(self, inputs, outputs, done):
        for i, row in enumerate(inputs[0]):
            check(row[None])
            outputs[0][i] = 2 * row
            done(i + 1)
        return outputs

    @property
    def engine(self):
        raise Unprintable("no")

    @contextmanager
    def serving(self):
        yield
        raise asyncio.CancelledError

    def close(self):
        raise KeyboardInterrupt


class Waiting(Steps):
    def __init__(self):
        self.held = {}

    @property
    def busy(self):
        return bool(self.held)

    def begin(self, key, client, inputs):
        self.held[key] = [2, inputs[0]]

    def step(self):
        for held in self.held.values():
            held[0] -= 1
            check(held[1])
        ended = [key for key, held in self.held.items() if not held[0]]
        return {key: 2 * self.held.pop(key)[1] for key in ended} | {-1: None}

    def drop(self, key):
        del self.held[key]
        raise Unprintable("no")


class Stepwise(mpiserve.Backend):
    def load(self):
        self.steps = Waiting()


class Fresh:
    def __init__(self):
        if Path("loaded").exists():
            raise Interrupts
        Path("loaded").touch()

    def __call__(self, x):
        return 2 * x


class Alike(mpiserve.Backend):
    def run(self, inputs):
        return guilty(inputs[0])


def small(x):
    return 2 * x
"""

SERVICES = {
    "guilty": 'model = "models:guilty"',
    "whole": 'model = "models:guilty"\nsplit_failed = false',
    "named": 'model = "models:named"',
    "chunked": 'backend = "models:Chunked"\nwarmup = false',
    "stepwise": 'backend = "models:Stepwise"\nwarmup = false',
    "fresh": 'model = "models:Fresh"',
    "unloadable": 'model = "unloadable:f"',
    "small": 'model = "models:small"\nmax_batch_rows = 2',
}

TABLE = """
[service.{name}]
{settings}
rows = "independent"
input_memory = "view"
inputs = [{{ name = "x", dtype = "float32", shape = [-1, 3] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, 3] }}]
max_delay_us = 100000
"""

# Each of three ranks asks three times at once; the second request of rank 1 is the guilty one.
GUILTY = """\
import mpiserve
import numpy as np


def ask(name, bad, right):
    service = session.service(name)
    session.comm.Barrier()
    inputs = [np.full((1 + 30 * (k % 2), 3), -1 - k, np.float32) for k in range(3)]
    if rank in bad:
        inputs[1][:] = bad[rank]
    failed = []
    for x, request in [(x, service.submit(x)) for x in inputs]:
        try:
            assert (request.result(timeout=60) == right(x)).all(), (name, bad, x[0])
            assert x[0, 0] < 0
        except mpiserve.ModelError as error:
            assert len(str(error).encode()) <= 400
            failed.append((x[0, 0] > 0, str(error)))
    return failed


def alone(name, bad, right=lambda x: 2 * x):
    failed = ask(name, bad, right)
    assert [guilty for guilty, _ in failed] == [True] * (rank in bad), (name, failed)
    if failed and rank == 1:
        print(f"{name} {bad[1]}: {failed[0][1][:60]}", flush=True)


with mpiserve.open() as session:
    rank = session.comm.rank
    for bad in range(1, 15):
        alone("guilty", {1: bad})
    alone("guilty", {0: 8, 1: 4, 2: 14})
    alone("named", {1: 5}, lambda x: rank)
    alone("chunked", {1: 4})
    failed = session.comm.allreduce(len(ask("stepwise", {1: 7}, lambda x: 2 * x)))
    assert failed >= 1, failed  # a step is of all that runs
    alone("stepwise", {})
    alone("alike", {1: 6})
    alone("alike", {0: 2, 2: 9})
    failed = session.comm.allreduce(len(ask("whole", {1: 5}, lambda x: 2 * x)))
    assert failed > 1, failed
    for rounds in range(2):
        if rank == 0:
            try:
                session.reload("fresh", timeout=60)
                raise AssertionError("loaded")
            except mpiserve.ModelError as error:
                print(f"fresh: {error}", flush=True)
        session.comm.Barrier()
        alone("fresh", {})
    try:
        session.service("unloadable")
    except mpiserve.ModelError as error:
        assert "GeneratorExit: at import" in str(error)
    small = session.service("small")
    for request in [small.submit(np.ones((2, 3), np.float32)) for _ in range(8)]:
        request.result(timeout=60)
    print(f"rank {rank} is right", flush=True)
"""

UNREADABLE = "(its text cannot be read: {})"
SAID = {
    1: "Unprintable: " + UNREADABLE.format("IndexError"),
    2: "Interrupts: " + UNREADABLE.format("KeyboardInterrupt"),
    3: "ValueError: a\\udc80b\\x00c\N{SNOWMAN}",
    4: "CancelledError",
    5: "KeyboardInterrupt: of the model",
    6: "GeneratorExit",
    7: "Base: base",
    8: "ValueError: loop",
    9: "StopIteration: stop",
    10: "ExceptionGroup: both (2 sub-exceptions)",
    11: "SystemExit: " + UNREADABLE.format("IndexError"),
    12: "RecursionError: deep",
    13: "MemoryError",
    14: "RuntimeError: generator raised StopIteration",
}


@pytest.fixture
def models(tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "unloadable.py").write_text('raise GeneratorExit("at import")\n')
    tables = []
    for name, settings in SERVICES.items():
        backend = "" if "backend" in settings else 'backend = "python"\n'
        tables.append(TABLE.format(name=name, settings=backend + settings))
    pool = f"[pool.all]\nservices = {list(SERVICES)}\n"
    alike = 'backend = "models:Alike"\ntensor_parallel = 2'
    tables.append(TABLE.format(name="alike", settings=alike))
    (tmp_path / "c.toml").write_text(pool + "".join(tables))
    (tmp_path / "sim.py").write_text(GUILTY)


def test_only_the_guilty_request_fails_whatever_its_model_raises(mpiexec, models):
    done = mpiexec(["-n", 6, *RUN, "c.toml", "sim.py"], timeout=100)
    for rank in range(3):
        assert f"rank {rank} is right" in done.stdout
    for bad, text in SAID.items():
        assert f"guilty {bad}: {text}" in done.stdout
    assert done.stdout.count("fresh: service 'fresh' on rank 3: Interrupts: (its text") == 2
    assert "could not close a model: KeyboardInterrupt" in done.stderr
    assert "could not leave what it needed to serve: CancelledError" in done.stderr
    assert "a step has given the result of a request that it does not have" in done.stderr
    assert "(python unloadable:f) cannot be served: GeneratorExit: at import" in done.stderr
    hidden = "service small: batches hold one request each: max_batch_rows = 2 is below the "
    assert done.stderr.count(hidden) == 1
    assert "service guilty: batches hold" not in done.stderr
    assert "\0" not in done.stderr and "Logging error" not in done.stderr


UNPRINTABLE = """\
import mpiserve
import numpy as np


class Unprintable(Exception):
    def __str__(self):
        return self.args[5]


with mpiserve.open() as session:
    if session.comm.rank == 1:
        raise Unprintable("a\\udc80")
    try:
        while True:
            session.service("twice")(np.ones((2, 3), np.float32))
    except mpiserve.PeerError as error:
        print(error, flush=True)
"""


def test_a_script_whose_exception_has_no_text_ends_the_others_with_its_name(mpiexec, tmp_path):
    write(tmp_path, UNPRINTABLE)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"])
    assert done.returncode not in (0, 124)
    name = "Unprintable: (its text cannot be read: IndexError) (sim.py:12)"
    assert f"simulation rank 1 ended with an error: {name}" in done.stdout
    assert 'raise Unprintable("a\\udc80")' in done.stderr
    assert "Unprintable: <exception str() failed>" in done.stderr


# The user's logging, of all ranks; each of them goes on when the log says what it waits for.
LOGGING = """\
import logging

handler = logging.FileHandler("log.txt", delay=True)
handler.setFormatter(logging.Formatter("LOG %(message)s"))
logging.getLogger().addHandler(handler)
"""

SEEN = """\
import time
from pathlib import Path


def seen(text):
    end = time.monotonic() + 40
    while text not in (Path("log.txt").read_text() if Path("log.txt").exists() else ""):
        assert time.monotonic() < end, text
        time.sleep(0.05)
"""

SLOW = """\
from seen import seen

seen("still loading service twice, replica 0 (python model:twice), for ")


def twice(x):
    return 2 * x
"""

WAITS = """\
import mpiserve
import numpy as np
from mpi4py import MPI
from seen import seen

seen("for every rank of the world (3) to come to mpiserve_open")
with mpiserve.open() as session:
    seen("no request yet; does the simulation use MPI_COMM_WORLD without libmpiserve_world.so?")
    session.service("twice")(np.ones((2, 3), np.float32))
    seen("no request any more: the program computes, or waits for something")
    if session.comm.rank == 1:
        seen("simulation rank 1 has not left the session, and 1 others have")
"""


@pytest.mark.takes_long
def test_the_log_says_once_whom_it_waits_for_and_goes_where_the_user_wants_it(mpiexec, tmp_path):
    write(tmp_path, WAITS)
    (tmp_path / "model.py").write_text(SLOW)
    (tmp_path / "seen.py").write_text(SEEN)
    (tmp_path / "sitecustomize.py").write_text(LOGGING)
    env = {"MPISERVE_WAIT_NOTICE": "0.3", "PYTHONPATH": str(tmp_path)}
    done = mpiexec(["-n", 2, PYTHON, "sim.py", ":", "-n", 1, *SERVE, "c.toml"], env=env)
    assert done.returncode == 0
    log = (tmp_path / "log.txt").read_text()
    for text in (
        "LOG loading service twice, replica 0 (python model:twice)\n",
        "to come to mpiserve_open",
        "no request yet",
        "this rank waits for simulation ranks 0, 1",
        "simulation rank 1 has not left the session",
    ):
        assert log.count(text) == (2 if text.startswith("this rank") else 1), text
    assert "mpiserve rank" not in done.stderr
