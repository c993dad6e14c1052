"""Any exception is described in one line, even if its own methods raise."""

import asyncio
import os
import signal
import sys

import pytest

from mpiserve.errors import Code, Error, ModelError
from mpiserve.failure import (
    TEXT,
    TRACE,
    check_interrupt,
    code_of,
    describe,
    interrupts,
    located,
    one_line,
    trace_of,
)


def says(text):
    """An exception whose text is this, or what this raises."""

    class Odd(Exception):
        def __str__(self):
            if isinstance(text, BaseException):
                raise text
            return text() if callable(text) else text

    return Odd()


class Meta(type):
    __name__ = property(lambda cls: 1 / 0)


class Nameless(Exception, metaclass=Meta):
    pass


class Liar(Exception):
    @property
    def __class__(self):
        raise RuntimeError("I have none")


class Text(str):
    def split(self, *_):
        raise RuntimeError("not me")

    __getitem__ = __len__ = __iter__ = split


def looped():
    first, second = ValueError("one"), ValueError("two")
    first.__cause__, second.__cause__ = second, first
    return first


def recursive():
    def text():
        return text()

    return says(text)


ODD = {
    "no text": (ValueError(), "ValueError"),
    "lines": (ValueError("no\n  good"), "ValueError: no good"),
    "IndexError": (says(IndexError()), "Odd: (its text cannot be read: IndexError)"),
    "KeyboardInterrupt": (says(KeyboardInterrupt()), "Odd: (its text cannot be read: Keyboard"),
    "SystemExit": (says(SystemExit(3)), "Odd: (its text cannot be read: SystemExit)"),
    "no string": (says(3), "Odd: (its text cannot be read: TypeError)"),
    "a string of its own": (says(Text("hm")), "Odd: hm"),
    "for ever": (recursive(), "Odd: (its text cannot be read: RecursionError)"),
    "surrogate": (ValueError("a\udc80b"), r"ValueError: a\udc80b"),
    "NUL": (ValueError("a\0b"), r"ValueError: a\x00b"),
    "escape": (ValueError("\x1b[31mred"), r"ValueError: \x1b[31mred"),
    "a metaclass": (Nameless("x"), "Nameless: x"),
    "a class that lies": (Liar("x"), "Liar: x"),
    "a name of two lines": (type("a\nb", (Exception,), {})("x"), "a b: x"),
    "no name": (type("", (Exception,), {})(), "an exception"),
    "cancelled": (asyncio.CancelledError(), "CancelledError"),
    "group": (ExceptionGroup("two", [ValueError(), OSError()]), "ExceptionGroup: two (2 sub-"),
    "loop": (looped(), "ValueError: one"),
    "our own": (ModelError(Code.EMODEL, "bad\nmodel"), "bad model"),
    "our own, wrong": (ModelError(Code.EMODEL, ["x"]), "(its text cannot be read: TypeError)"),
    "our own, empty": (ModelError(Code.EMODEL), "EMODEL"),
}


@pytest.mark.parametrize("name", ODD)
def test_every_exception_is_one_line_that_can_be_sent(name):
    error, text = ODD[name]
    line = describe(error)
    assert line.startswith(text)
    assert line.isprintable() and 0 < len(line.encode()) <= TEXT


@pytest.mark.parametrize("name", ODD)
def test_every_traceback_can_be_written(name):
    assert trace_of(ODD[name][0]).encode().count(b"\0") == 0


def test_a_long_text_is_cut_between_characters():
    for extra in range(3):
        line = describe(ValueError("x" * extra + "\N{SNOWMAN}" * 1_000_000))
        assert TEXT - 3 < len(line.encode()) <= TEXT
        assert line.rstrip("\N{SNOWMAN}") == "ValueError: " + "x" * extra
    assert len(trace_of(ValueError("y" * 1_000_000))) < TRACE + 10
    assert one_line("\N{SNOWMAN}" * 3, 7) == "\N{SNOWMAN}" * 2


def test_a_long_chain_of_exceptions_has_a_traceback():
    error = None
    for number in range(3 * sys.getrecursionlimit()):
        error, before = ValueError(str(number)), error
        error.__cause__ = before
    assert len(trace_of(error)) < TRACE + 10


def test_a_code_that_no_reply_can_carry_is_that_of_the_model():
    codes = [Error(5), Error(0), Error("x"), ModelError(Code.EMODEL), ValueError(), Liar()]
    assert [code_of(error) for error in codes] == [Code.EMODEL] * 6
    assert code_of(Error(Code.ESTATE)) == Code.ESTATE


def test_ctrl_c_is_distinguished_from_exceptions_of_a_model():
    with interrupts():
        with pytest.raises(KeyboardInterrupt):
            raise KeyboardInterrupt
        check_interrupt()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(10**6))
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()
    check_interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_located_names_the_line_of_an_error():
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        assert located(error).startswith("ValueError: two lines (test_failure.py:")
    assert located(SystemExit(3)) == "the program ended with status 3"
