"""What isolates models: budgets, environments, texts, places in memory, signals."""

import base64
import logging
import os
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from workers import FLOATS, service_of

from mpiserve._lib import handover
from mpiserve.backends.base import Native
from mpiserve.config import Config
from mpiserve.errors import Code, ConfigError, ModelError
from mpiserve.failure import cause_of, describe, trace_of
from mpiserve.serving import engines
from mpiserve.serving.isolation import fork_server, local_model, server_link
from mpiserve.serving.isolation.channel import CALL, OK, RUN, Channel, Room, sizes
from mpiserve.serving.isolation.isolated_steps import IsolatedSteps
from mpiserve.serving.isolation.messages import Failure, Order, StepsState
from mpiserve.serving.isolation.process import ChildProcess, LostError, wait_for_rows
from mpiserve.serving.isolation.restarts import IN_A_ROW, Restarts
from mpiserve.serving.isolation.server_link import ForkServer, ending, without_mpi
from mpiserve.serving.loading import Known


def test_a_replica_is_given_up_after_so_many_deaths_in_a_time():
    restarts = Restarts(2, 10.0)
    assert [restarts.count(now) for now in (0.0, 1.0, 2.0)] == [True, True, False]
    restarts = Restarts(2, 10.0)
    assert all(restarts.count(now) for now in (0.0, 6.0, 12.0, 18.0))
    assert not Restarts(0, 10.0).count(0.0)


def test_the_search_for_a_guilty_request_counts_once_but_has_an_end():
    restarts = Restarts(1, 10.0)
    assert restarts.count(0.0)
    assert all(restarts.count(0.0, part=True) for _ in range(IN_A_ROW - 1))
    assert not restarts.count(0.0, part=True)
    restarts.succeed()
    assert restarts.count(0.0, part=True)
    assert not restarts.count(0.0)


def test_what_is_published_of_local_models_has_a_limit():
    assert local_model.published(service_of("plain", backend="echo")) == {}
    service = service_of("s", backend="echo", fallback="local", load_timeout_s=5.0)
    made = local_model.published(service)
    assert made["local_timeout"] == 80, "twice to load and to run, and a minute"
    program, *words, last, end = made["local"].split("\n")
    assert (program, words, end) == (sys.executable, ["-m", local_model.MODULE], "")
    assert pickle.loads(zlib.decompress(base64.b85decode(last))) == service
    options = {"text": base64.b85encode(os.urandom(2000)).decode()}
    service = service_of("s", backend="echo", fallback="local", options=options)
    with pytest.raises(
        ConfigError, match=r"service\.s\.fallback: .* at most 2047 can be published"
    ):
        local_model.published(service)


def test_a_child_does_not_take_itself_for_a_rank():
    launchers = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PRTE_X", "HYDI_CONTROL_FD")
    launchers += ("MPI_LOCALRANKID", "PMI_FD", "MPIR_CVAR_X", "PALS_RANKID", "HYDRA_X")
    kept = {"PATH": "/bin", "MPISERVE_LOG": "info", "COMPILE": "1", "MPLBACKEND": "agg"}
    assert without_mpi(dict.fromkeys(launchers, "1") | kept) == kept


def test_the_end_of_a_process_is_told_by_the_name_of_its_signal():
    assert ending(signal.SIGSEGV, "here") == "was killed by SIGSEGV (Segmentation fault) here"
    assert ending(signal.SIGKILL, "here").startswith("was killed by SIGKILL here: the machine")
    assert ending(7 << 8, "here") == "has ended with status 7 here"
    assert ending(None, "here") == "has ended here"
    assert "signal 40 " in ending(40, "here")


def failed(error):
    """Send an exception to another process, as it does."""
    try:
        raise error
    except BaseException as raised:
        return pickle.loads(pickle.dumps(Failure.of(raised))).error()


def test_an_exception_keeps_its_text_and_its_traceback_in_another_process():
    error = failed(ValueError("no\n good"))
    assert describe(error) == "ValueError: no good" and isinstance(error, ModelError)
    trace = trace_of(cause_of(error))
    assert trace.startswith("Traceback") and "raise error" in trace
    error = failed(ConfigError(Code.ECONFIG, "wrong"))
    assert (type(error), error.text, cause_of(error)) == (ConfigError, "wrong", None)


@pytest.fixture
def channels():
    """Both sides of a channel, in one process."""
    service = service_of("s", outputs=[{"name": "y", **FLOATS}], backend="m:M", max_batch_rows=5)
    mine = Channel.create(service)
    other = Channel([os.dup(file) for file in mine.files])
    yield service, mine, other
    mine.close()
    other.close()


def test_a_message_of_any_size_and_its_answer(channels):
    _, mine, other = channels
    for text in ("short", "long" * 1_000_000, ""):
        mine.ask(text)
        assert other.calls.next(0.0) and other.calls.operation == CALL
        assert other.asked() == text
        other.answer(OK, [text])
        assert mine.calls.wait(0.0, -1) == handover.ENDED
        assert mine.answered() == (OK, [text])


def test_tensors_lie_apart_and_both_sides_see_them(channels):
    service, mine, other = channels
    inputs, outputs, clients = Room(service, mine.own).arrays(5)
    for i, array in enumerate((*inputs, *outputs, clients)):
        array[...] = i
    seen = Room(service, other.own).arrays(5)
    for i, array in enumerate((*seen[0], *seen[1], seen[2])):
        assert (np.asarray(array) == i).all()
    places = tuple(number for place in Room(service, mine.own).places() for number in place)
    mine.calls.post(RUN, 5, places)
    assert other.calls.next(0.0) and (other.calls.rows, other.calls.places) == (5, places)


def test_memory_cannot_be_cut_by_a_child(channels):
    for file in (channels[2].files[0], channels[2].files[3]):
        with pytest.raises(PermissionError):
            os.ftruncate(file, 0)


def test_a_late_call_and_reports_of_rows(channels):
    _, mine, other = channels
    mine.calls.post(RUN, 5)
    assert mine.calls.wait(0.0, -1) == handover.LATE and not mine.calls.taken
    assert other.calls.next(0.0) and mine.calls.taken
    other.calls.report(3)
    assert (mine.calls.wait(0.0, -1), mine.calls.rows_done) == (handover.ROWS, 3)
    other.calls.end(OK)
    assert (mine.calls.wait(0.0, -1), mine.calls.answer) == (handover.ENDED, (OK, 0))
    assert not other.calls.next(0.0)


def test_a_child_that_reports_for_ever_is_late(channels):
    _, mine, other = channels
    mine.calls.post(RUN, 5)
    assert other.calls.next(0.0)
    over, done = threading.Event(), []

    def report():
        while not over.is_set():
            other.calls.report(3)

    with ThreadPoolExecutor(1) as wild:
        wild.submit(report)
        try:
            found = wait_for_rows(mine.calls, -1, 5, done.append, time.monotonic(), lambda: True)
            assert found == handover.LATE
        finally:
            over.set()
    assert done in ([], [3])


def test_an_engine_answers_batches_and_python_the_rest(channels):
    service, mine, other = channels
    echo, memory = engines.load(Native(None), service), np.frombuffer(other.own, np.uint8)
    places = (memory.ctypes.data, memory.ctypes.data, memory.nbytes)
    other.calls.serve(RUN, echo.address, sizes(service), [places], (echo, memory))
    (x,), (y,), _ = Room(service, mine.own).arrays(5)
    flat = [number for place in Room(service, mine.own).places() for number in place]
    for value in (1.5, 2.5):
        x[...] = value
        mine.calls.post(RUN, 5, tuple(flat))
        assert not other.calls.next(0.0)
        assert mine.calls.wait(0.0, -1) == handover.ENDED
        assert mine.calls.answer == (OK, 0) and (y == value).all()
    flat[1] = memory.nbytes - 1  # the first input would end outside
    mine.calls.post(RUN, 5, tuple(flat))
    assert other.calls.next(0.0) and other.calls.operation == RUN
    other.calls.end(OK)
    assert mine.calls.wait(0.0, -1) == handover.ENDED
    mine.ask("a message")
    assert other.calls.next(0.0) and other.asked() == "a message"
    assert mine.calls.looks == 4 and not mine.calls.resume()


def isolation(**keys):
    tensors = {"inputs": [{"name": "x", **FLOATS}], "outputs": [{"name": "y", **FLOATS}]}
    table = {"backend": "m:M", **tensors, **keys}
    if table["backend"] == "echo":
        del table["outputs"]
    return Config.from_dict({"service": {"s": table}}).services[0]


def test_which_services_are_isolated():
    assert isolation().isolated and isolation(backend="torch", model="m:f").isolated
    assert (
        not isolation(backend="echo").isolated and isolation(backend="echo", isolate=True).isolated
    )
    assert isolation(backend="deepspeed", model="m:f", tensor_parallel=2).isolated
    own = isolation(backend="m:Class", tensor_parallel=2)
    assert not own.isolated and not isolation(isolate=False).isolated


@pytest.mark.parametrize(
    "keys",
    [
        {"isolate": "never"},
        {"isolate": True, "backend": "m:Class", "tensor_parallel": 2},
        {"isolate": False, "timeout_s": 1.0},
        {"memory_bytes": 1, "backend": "m:Class", "tensor_parallel": 2},
        {"timeout_s": -1.0},
        {"restarts": -1},
        {"load_timeout_s": 0.0},
    ],
)
def test_wrong_keys_of_isolation_are_named(keys):
    with pytest.raises(ConfigError) as caught:
        isolation(**keys)
    assert any(key in caught.value.text for key in keys)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signals_that_launchers_send_to_all_processes_end_no_model(number, channels):
    server, (_, channel, _) = ForkServer(), channels
    try:
        child = server.fork("a child", channel.files)
        before = server._process
        for pid in (before.pid, child.pid):
            os.kill(pid, number)
        again = server.fork("another", channel.files)
        assert server._process is before and before.poll() is None
        for process in (child, again):
            assert not select.select([process.pidfd], [], [], 0.2)[0]
            server.end(process)
    finally:
        server.close()


# ---- the fork server in trouble


@pytest.fixture
def server():
    made = ForkServer()
    yield made
    made.close()


def test_a_fork_server_that_was_stopped_goes_on_when_it_is_needed(monkeypatch, server, channels):
    monkeypatch.setattr(server_link, "LOOK", 0.1)
    first = server.fork("a child", channels[1].files)
    os.kill(server._process.pid, signal.SIGSTOP)
    begin = time.monotonic()
    second = server.fork("another", channels[1].files)
    assert time.monotonic() - begin < 60
    assert [server.end(process) for process in (first, second)] == [signal.SIGKILL] * 2


def test_descriptors_of_any_number_are_watched(server, channels):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        process = server.fork("a child", channels[1].files)
        assert process.pidfd > 1024  # more than `select` can watch
        assert server.end(process) == signal.SIGKILL
    finally:
        for file in files:
            os.close(file)


def test_where_there_can_be_no_more_processes_the_others_live_on(monkeypatch, server, channels):
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server._link, server._process = mine, subprocess.Popen(["true"])

    def no_process():
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(os, "fork", no_process)
    with ThreadPoolExecutor(1) as forks, other:
        goes_on = forks.submit(fork_server.Server(other).run)
        for _ in range(2):
            with pytest.raises(ModelError, match="can be made: .*no more processes"):
                server.fork("a child", channels[1].files)
        assert not goes_on.done()
        server.close()
        goes_on.result(5)


def test_a_fork_server_that_was_killed_is_started_again_when_it_is_needed(server, channels):
    server.start()
    server._process.kill()
    server._process.wait()
    for name in ("json", "csv"):
        server.load([name])
    process = server.fork("a child", channels[1].files)
    assert server.end(process) == signal.SIGKILL


def test_no_request_is_forgotten_when_processes_die_on_two_others_in_a_row():
    class Dies:
        """The child: it dies of requests whose key is odd."""

        def call(self, name, *arguments, **_):
            if name == "begin" and arguments[0] % 2:
                raise LostError(Code.EMODEL, f"died of {arguments[0]}")
            return StepsState(busy=True, room=True)

    steps = IsolatedSteps(Dies, lambda error: None, 0.0)
    steps.begin(0, 0, ())
    for key in (1, 3):
        with pytest.raises(LostError):
            steps.begin(key, 0, ())
    assert steps.busy
    assert {key: error.text for key, error in steps.step().items()} == {0: "died of 1"}


# Each process of the chain lives on for a while when it has started the next one.
HEIRS = """
import os, subprocess, sys, time
from mpiserve._lib import handover
from mpiserve.serving.isolation.fork_server import Server

CHAIN = '''
import os, time
os.setsid()
end = time.monotonic() + 20
while time.monotonic() < end:
    if os.fork():
        time.sleep(0.2)
        os._exit(0)
    time.sleep(0.1)
'''
handover.adopt_orphans()
server = Server(None)
subprocess.Popen([sys.executable, "-c", CHAIN]).wait()
assert server._orphans()
server._kill_orphans()
assert not server._orphans(), server._orphans()
"""


def test_what_orphans_have_started_ends_with_them():
    done = subprocess.run([sys.executable, "-c", HEIRS], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_a_signal_ends_the_fork_server_while_it_imports_a_library(tmp_path, monkeypatch, capsys):
    (tmp_path / "leaves.py").write_text("raise SystemExit")
    (tmp_path / "signals.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    monkeypatch.syspath_prepend(tmp_path)
    fork_server.load_library("leaves")
    assert "cannot import leaves ahead: SystemExit()" in capsys.readouterr().err
    before = signal.signal(signal.SIGTERM, fork_server._stop)
    try:
        with pytest.raises(fork_server.Stopped):
            fork_server.load_library("signals")
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- what children share

TELLS = """
import os, sys
from mpiserve import Backend

SHARED = "mpiserve.backends.python" in sys.modules

class Tells(Backend):
    engine = f"{SHARED} {os.environ.get('HOME')} {os.environ.get('NEW')} {os.environ['SAME']}"

    def run(self, inputs):
        return inputs

def model(x):
    return x
"""


@pytest.fixture
def load(server, tmp_path, monkeypatch):
    """Load a model in a child of its own; return what it says."""
    (tmp_path / "tells.py").write_text(TELLS)
    monkeypatch.setenv("HOME", "/there")
    monkeypatch.setenv("SAME", "kept")
    path = (str(tmp_path), *sys.path)
    new = {name: text for name, text in os.environ.items() if name != "HOME"} | {"NEW": "here"}

    def load(known=None, **table):
        service = service_of("s", outputs=[{"name": "y", **FLOATS}], **table)
        cores = frozenset(os.sched_getaffinity(0))
        order = Order(service, 0, path, new, cores, logging.INFO, known=known)
        child = ChildProcess(server, service)
        try:
            return child.call("load", order, limit=60, what="while it loaded")
        finally:
            child.end()

    return load


def test_a_child_has_the_environment_of_its_rank(load):
    assert load(backend="tells:Tells").engine == "False None here kept"


def test_later_children_share_what_the_first_one_has_imported(server, load):
    python = {"backend": "python", "model": "tells:model"}
    first = load(**python)
    assert "mpiserve.backends.python" in first.libraries
    assert "tells" not in first.libraries, "modules of the user's are read anew"
    known = Known(first.together, first.copies, first.tuning, first.native)
    assert load(known, **python).libraries == (), "it has nothing new to say"
    server.load(first.libraries, later=True)
    end = time.monotonic() + 60
    while not load(backend="tells:Tells").engine.startswith("True"):
        assert time.monotonic() < end
