import logging
import sys
from types import SimpleNamespace

import pytest

from mpiserve.errors import Code, ConfigError, Error, PeerError
from mpiserve.launch import run as program


class World:
    """What a guard sees of a session, and a clock."""

    def __init__(self, position=0):
        self.comm = SimpleNamespace(rank=position)
        self.state = (-1, 3, "")
        self.now = 0.0
        self.aborted = []
        self.guard = program.Guard(self, self.aborted.append, lambda: self.now)

    def peer_error(self):
        return self.state

    def look(self, now):
        self.now = now
        self.guard()


@pytest.fixture(autouse=True)
def grace(monkeypatch):
    monkeypatch.setenv("MPISERVE_GRACE", "5")


def test_a_world_without_errors_is_left_alone():
    world = World()
    for now in range(100):
        world.look(now)
    assert not world.aborted


def test_ranks_that_leave_within_the_grace_end_in_peace():
    world = World()
    world.state = (1, 2, "ValueError: boom")
    world.look(1)
    world.look(5)
    world.state = (1, 0, "ValueError: boom")
    world.look(20)
    assert not world.aborted


def test_ranks_that_never_leave_end_the_job_with_one_line(caplog):
    world = World()
    world.look(1)
    world.state = (1, 2, "ValueError: boom")
    world.look(10)
    world.look(14.9)
    assert not world.aborted
    world.look(15.2)
    assert world.aborted == [1]
    assert caplog.messages == [
        "rank 1 ended with an error (ValueError: boom) and 2 simulation rank(s) did not leave "
        "within 5 s (MPISERVE_GRACE): aborting the job"
    ]


def test_the_next_inference_rank_steps_in_a_second_later():
    world = World(position=1)
    world.state = (1, 2, "ValueError: boom")
    world.look(10)
    world.look(15.5)
    assert not world.aborted
    world.look(16.1)
    assert world.aborted


def test_a_grace_that_is_no_number_is_the_usual_one(monkeypatch):
    monkeypatch.setenv("MPISERVE_GRACE", "soon")
    assert program.grace() == program.GRACE


def test_complaints_are_one_line_and_a_status(capsys, monkeypatch):
    monkeypatch.delenv("PMI_RANK", raising=False)
    assert program.complain(ConfigError(Code.ECONFIG, "c.toml: wrong")) == 2
    assert program.complain(Error(Code.ETHREAD, "levels")) == 1
    assert program.complain(ConfigError(Code.ECONFIG, "again"), quiet=True) == 2
    assert capsys.readouterr().err == "mpiserve: c.toml: wrong\nmpiserve: levels\n"


def test_of_singletons_that_were_launched_together_one_complains(capsys, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    for rank in "0123":
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
        program.complain(Error(Code.EVERSION, "the world has 1 rank"))
    assert capsys.readouterr().err == "mpiserve: the world has 1 rank\n"


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "sim.py"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def execute(script, monkeypatch):
    """Run a script's text; give its status and its error."""
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", list(sys.path))

    def run(text, *args):
        path = script(text)
        return program._execute(path, args, program.Reporter(path))

    return run


def test_a_script_runs_as_the_main_program_with_its_arguments(execute, capsys, tmp_path):
    text = "import sys; print(__name__, sys.argv[1:], sys.path[0])"
    assert execute(text, "-n", "3") == (0, None)
    assert capsys.readouterr().out == f"__main__ ['-n', '3'] {tmp_path}\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [("raise SystemExit", 0), ("raise SystemExit(0)", 0), ("raise SystemExit(7)", 7)],
)
def test_the_status_of_a_script_is_respected(execute, text, status):
    found, error = execute(text)
    assert found == status
    assert bool(error) == bool(status)


def test_a_script_may_end_with_a_text(execute, capsys):
    assert execute("raise SystemExit('not today')")[0] == 1
    assert capsys.readouterr().err == "not today\n"


def test_the_traceback_of_a_script_begins_in_the_script(execute, caplog, tmp_path):
    status, error = execute("def f():\n    raise ValueError('boom')\nf()")
    assert (status, type(error)) == (1, ValueError)
    assert caplog.text.count("Traceback") == 1
    assert caplog.text.count('File "') == 2
    assert "runpy" not in caplog.text


def test_an_error_is_reported_once(caplog):
    show = program.Reporter("sim.py")
    error = ValueError("boom")
    show(error)
    show(error)
    assert caplog.text.count("boom") == 1


def test_the_error_of_another_rank_needs_no_traceback(caplog):
    program.Reporter("sim.py")(PeerError(Code.EPEER, "simulation rank 1 ended with an error"))
    assert caplog.messages == ["ended, because simulation rank 1 ended with an error"]


@pytest.mark.parametrize(("name", "level"), [("debug", 10), ("WARNING", 30), ("nonsense", 20)])
def test_the_log_level_comes_from_the_environment(monkeypatch, name, level):
    logger = logging.getLogger("mpiserve")
    kept = logger.handlers, logger.propagate, logger.level
    monkeypatch.setenv("MPISERVE_LOG", name)
    program.start_logging(3)
    found = logger.level
    logger.handlers, logger.propagate, logger.level = kept
    assert found == level
