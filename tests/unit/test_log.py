"""The log goes to stderr, unless the user sets a handler, at any time."""

import io
import logging
import re

import pytest

from mpiserve.errors import Code, ModelError
from mpiserve.observe import log


@pytest.fixture
def start(monkeypatch):
    """Starts the log of a rank, where nobody has handlers; gives where it goes."""
    logger = logging.getLogger("mpiserve")

    def begin():  # in the test itself: pytest has handlers of its own by then
        monkeypatch.delenv("MPISERVE_LOG", raising=False)
        for one in (logger, logging.getLogger()):
            monkeypatch.setattr(one, "handlers", [])
        monkeypatch.setattr(logger, "propagate", True)
        logger.setLevel(logging.NOTSET)
        log.start_logging(3)
        stream = io.StringIO()
        logger.handlers[0].setStream(stream)
        return stream

    level = logger.level
    yield begin
    logger.setLevel(level)


def test_a_line_has_time_level_and_rank(start):
    stderr = start()
    log.logger.info("ready")
    log.logger.warning("late")
    log.logger.debug("too much")
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    lines = rf"{time} INFO mpiserve rank 3: ready\n{time} WARNING mpiserve rank 3: late\n"
    assert re.fullmatch(lines, stderr.getvalue())


def test_starting_twice_does_not_double_lines(start):
    stderr = start()
    log.start_logging(4)
    log.logger.info("once")
    assert stderr.getvalue().count("once") == 1 and "rank 4" in stderr.getvalue()


@pytest.mark.parametrize("name", ["", "mpiserve"])
def test_a_handler_of_the_users_gets_the_lines_instead_also_if_it_comes_later(start, name):
    stderr = start()
    log.logger.info("before")
    mine = logging.StreamHandler(io.StringIO())
    logging.getLogger(name).addHandler(mine)
    log.logger.info("after")
    assert "before" in stderr.getvalue() and "after" not in stderr.getvalue()
    assert mine.stream.getvalue() == "after\n"


def test_a_handler_that_does_nothing_takes_no_lines(start):
    stderr = start()
    logging.getLogger().addHandler(logging.NullHandler())
    log.logger.info("here")
    assert "here" in stderr.getvalue()


def test_an_unknown_level_is_logged(start, monkeypatch):
    stderr = start()
    monkeypatch.setenv("MPISERVE_LOG", "loud")
    log.start_logging(3)
    assert "MPISERVE_LOG is 'loud': set it to one of debug, info" in stderr.getvalue()


class Unprintable(Exception):
    def __str__(self):
        raise KeyboardInterrupt


def test_failures_are_logged_once_with_their_traceback_and_not_for_ever(start):
    stderr = start()
    failures = log.Failures(lambda: "service s")
    assert failures.once(Unprintable()) == failures.once(Unprintable())
    failures.once(ModelError(Code.EMODEL, "ours"))
    assert stderr.getvalue().count("Unprintable: <exception str() failed>") == 1
    assert "service s failed on a batch: ours\n" in stderr.getvalue()
    for number in range(3 * log.MANY):
        assert failures.once(ValueError(number)) == f"ValueError: {number}"
    assert stderr.getvalue().count("failed on a batch") == log.MANY
    assert stderr.getvalue().count(f"service s failed in {log.MANY} ways") == 1


def test_a_handler_of_the_users_that_cannot_write_a_failure_ends_nothing(start):
    start()

    class Asks(logging.Handler):
        def emit(self, record):
            str(record.exc_info[1] if record.exc_info else "")

    logging.getLogger().addHandler(Asks())
    log.Failures(lambda: "service s").once(Unprintable())


def test_what_is_attempted_may_fail(start):
    stderr = start()

    def close():
        raise GeneratorExit("close")

    log.Failures(lambda: "service s").attempt("could not close", close)
    assert "service s could not close: GeneratorExit: close" in stderr.getvalue()
